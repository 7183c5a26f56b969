//! Builds the payload image: `payload/main.rs`, freestanding, linked at a fixed address.
//!
//! Promises: needs nothing but the compiler that builds everything else; no bare-metal target has to be installed. Must never: use flags
//! meant for this crate, which is an ordinary program.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let sources = manifest.join("payload");
    let image = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("payload.elf");
    println!("cargo:rerun-if-changed={}", sources.display());
    println!("cargo:rustc-env=EBB_PAYLOAD={}", image.display());

    let status = compile(&sources, &image).status().expect("the compiler starts");
    assert!(status.success(), "the payload image does not build: {status}");
}

fn compile(sources: &Path, image: &Path) -> Command {
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets it"));
    rustc.arg(sources.join("main.rs")).arg("-o").arg(image);
    rustc.args([
        "--edition",
        "2024",
        "--crate-name",
        "payload",
        "--crate-type",
        "bin",
        "--target",
        "x86_64-unknown-linux-gnu",
    ]);
    // Always optimised: the workloads are to run at full speed whatever the tests are built with.
    rustc.args([
        "-C",
        "opt-level=3",
        "-C",
        "panic=abort",
        "-C",
        "relocation-model=static",
        "-C",
        "codegen-units=1",
        "-D",
        "warnings",
    ]);
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    rustc.args(["-C", "link-arg=-T", "-C"]).arg(format!("link-arg={}", sources.join("link.ld").display()));
    // The linker may find one segment for everything remarkable; it is what the image wants.
    rustc.args(["-A", "linker_messages"]);
    rustc
}
