//! Charon.
