//! The option `--device` of commands that run a model.

use std::sync::OnceLock;

use anyhow::Result;
use atombank::error::Finding;
use candle_core::Device;
use clap::Args;

/// Where to compute.
#[derive(Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: cpu, or cuda:N in a build with --features cuda
    #[arg(long = "device", value_name = "DEVICE", default_value = "cpu", value_parser = parse_device)]
    named: Named,
    #[arg(skip)]
    opened: OnceLock<Device>,
}

/// A device by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl DeviceArgs {
    /// The device. A GPU is opened at the first call: after settings are read, and once.
    pub(crate) fn open(&self) -> Result<&Device> {
        let device = match (self.opened.get(), self.named) {
            (Some(device), _) => return Ok(device),
            (None, Named::Cpu) => Device::Cpu,
            (None, Named::Cuda(number)) => Device::new_cuda(number).map_err(|error| {
                // With RUST_BACKTRACE, candle's errors have more lines.
                let reason = error.to_string();
                let reason = reason.lines().next().unwrap_or_default();
                Finding::new("", "device").found(format_args!("no such GPU: {reason}")).setting()
            })?,
        };
        Ok(self.opened.get_or_init(|| device))
    }
}

/// Parses the name of a device.
fn parse_device(text: &str) -> Result<Named, String> {
    let number = match text.split_once(':') {
        None if text == "cpu" => return Ok(Named::Cpu),
        // One GPU for each process of a run.
        None if text == "cuda" => atombank::train::Ranks::on_this_machine(),
        Some(("cuda", n)) => n.parse().map_err(|_| format!("no number: {n}"))?,
        _ => return Err("expected cpu, cuda or cuda:N".to_owned()),
    };
    match cfg!(feature = "cuda") {
        true => Ok(Named::Cuda(number)),
        false => Err("this build computes on the CPU alone; build with --features cuda".to_owned()),
    }
}
