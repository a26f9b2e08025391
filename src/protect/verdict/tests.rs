//! Tests of [`verdict`](super).
