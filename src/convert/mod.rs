//! Conversion
