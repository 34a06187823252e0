"""The comparison on a GPU: cases, contenders, cuDNN's regimes, targets, and what the report says of them."""
