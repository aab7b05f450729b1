"""Two checkpoints: folding an adapter into plain weights, with proof."""
