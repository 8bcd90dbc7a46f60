"""Independent references: plain float64 NumPy with loops, written from the papers' formulas."""
