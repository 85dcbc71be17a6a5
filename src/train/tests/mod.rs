//! Whole runs: on ranks, packed, of LoRAs of every variant, and of experts.

mod experts;
mod packing;
mod ranks;
mod variants;
