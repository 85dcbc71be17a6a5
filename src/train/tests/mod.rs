//! Whole runs, on ranks and of LoRAs of experts.

mod experts;
mod ranks;
