"""Many runs from one Python file: specs, budgets, the ledger, cells."""
