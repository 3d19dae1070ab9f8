//! The admin listener: health, readiness, metrics, reflection.
