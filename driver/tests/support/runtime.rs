//! Test support: runtime.
