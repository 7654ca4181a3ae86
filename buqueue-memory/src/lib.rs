//! See the repository README.
