//! Test support: apiserver.
