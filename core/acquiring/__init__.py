"""Payments by acquirers: authorise, capture, refund, and the purses that pay."""
