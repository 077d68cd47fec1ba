"""Parts of self-contained HTML pages: charts as SVG, pictures, tables."""
