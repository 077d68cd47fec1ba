"""What a run writes down about itself: metrics, throughput, goodput, traces."""
