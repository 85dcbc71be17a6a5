//! Names of the hub.
