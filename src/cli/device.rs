//! The option `--device` of commands that run a model.

use candle_core::Device;
use clap::Args;

/// Where to compute.
#[derive(Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: cpu, or cuda:N in a build with --features cuda
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = parse_device)]
    pub(crate) device: Device,
}

/// Parses the name of a device.
fn parse_device(text: &str) -> Result<Device, String> {
    let number = match text.split_once(':') {
        None if text == "cpu" => return Ok(Device::Cpu),
        None if text == "cuda" => 0,
        Some(("cuda", n)) => n.parse().map_err(|_| format!("no number: {n}"))?,
        _ => return Err("expected cpu, cuda or cuda:N".to_owned()),
    };
    if !cfg!(feature = "cuda") {
        return Err("this build computes on the CPU alone; build with --features cuda".to_owned());
    }
    // With RUST_BACKTRACE, candle's errors have more lines.
    Device::new_cuda(number)
        .map_err(|error| format!("no such GPU: {}", error.to_string().lines().next().unwrap_or_default()))
}
