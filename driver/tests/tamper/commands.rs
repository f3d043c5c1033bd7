//! What a hostile process tries with `ip` and `tc`.
