"""Slide-level heads on real bags and on slides with a planted sign."""
