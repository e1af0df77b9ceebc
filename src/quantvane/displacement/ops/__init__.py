"""One kernel per file, each with ``rows(ref, cand, tokens, top_k) -> TokenMetrics`` over validated arrays."""
