//! `make guest`: kernels and initramfs for trying `ebb run` by hand, in `target/guest/`.
//!
//! Promises: what lies there afterwards is what the tests boot. Must never: be needed by a test.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use ebb_tests::host::artifacts::{self, Kernel};

/// Puts one kernel and its initramfs into the folder, under names that begin with `prefix`.
fn put(folder: &Path, prefix: &str, kernel: &Kernel) -> Result<(), Box<dyn Error>> {
    fs::copy(&kernel.bz_image, folder.join(format!("{prefix}bzImage")))?;
    if let Some(vmlinux) = &kernel.vmlinux {
        fs::copy(vmlinux, folder.join(format!("{prefix}vmlinux")))?;
    }
    let scratch = tempfile::tempdir()?;
    artifacts::guest_initramfs(kernel, scratch.path())?.write_file(&folder.join(format!("{prefix}initramfs.cpio")))?;
    Ok(())
}

fn guest() -> Result<(), Box<dyn Error>> {
    let folder = artifacts::output_folder("guest")?;
    put(&folder, "", &artifacts::our_kernel()?)?;
    put(&folder, "stock-", &artifacts::stock_kernel()?)?;
    println!("{} holds bzImage, vmlinux and initramfs.cpio, and Debian's as stock-*; for example:", folder.display());
    println!(
        "  ebb run --kernel target/guest/bzImage --initrd target/guest/initramfs.cpio --cmdline 'console=ttyS0 ebb.do=shell'"
    );
    Ok(())
}

fn main() -> ExitCode {
    match guest() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ebb-guest: {error}");
            ExitCode::FAILURE
        }
    }
}
