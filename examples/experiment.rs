//! Noisy non-linear regression with a frozen MLP: banks beside LoRAs of their size, mixtures of LoRAs and one LoRA each.
//! `cargo run --release --example experiment [SEEDS] [DIVISOR OF STEPS]` prints tables; with 10 seeds it takes about an hour.

use atombank::experiment::{Size, regression};

fn main() -> atombank::Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let seeds = numbers.next().unwrap_or(10);
    let size = Size { seeds, hurry: numbers.next().unwrap_or(1), ..Size::default() };
    println!("{}", regression(size, &|line| eprintln!("{line}"))?.markdown());
    Ok(())
}
