//! Boots a kernel with its console on this terminal: `boot KERNEL [--initrd FILE] [--cmdline STR] [--memory MIB] [--cpus N] [--disk FILE]`.

use std::error::Error;
use std::process::ExitCode;

use vmm::{BootSource, ConsoleConfig, DiskConfig, EntryMode, Machine, MachineConfig};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("boot: {error}{}", causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().ok_or("which kernel?")?;
    let mut config = MachineConfig {
        huge_pages: memtier::status::HugePages::Off,
        id: "boot".into(),
        cpus: 1,
        memory: 128 << 20,
        boot: BootSource { kernel: kernel.into(), initrd: None, cmdline: None, entry: EntryMode::Linux },
        disks: Vec::new(),
        entropy: true,
        console: ConsoleConfig::Stdio,
        tiering: None,
    };
    while let Some(option) = args.next() {
        let value = args.next().ok_or("an option without its value")?;
        match option.as_str() {
            "--initrd" => config.boot.initrd = Some(value.into()),
            "--cmdline" => config.boot.cmdline = Some(value),
            "--memory" => config.memory = value.parse::<u64>()? << 20,
            "--cpus" => config.cpus = value.parse()?,
            "--disk" => config.disks.push(DiskConfig { path: value.into(), read_only: false }),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let machine = Machine::build(config)?;
    machine.start()?;
    let reason = machine.wait();
    eprintln!("boot: {reason}");
    Ok(if reason.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn causes(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(error.source(), |cause| (*cause).source()).map(|cause| format!(": {cause}")).collect()
}
