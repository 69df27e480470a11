//! Builds the eBPF object that the dataplane embeds.
//!
//! Where the toolchain for it is missing, an empty file takes the object's place, so that
//! everything else still builds, and one line says what is missing.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Toolchains that may do it, best first: one linked under this name (`cargo xtask setup` links a
/// distribution's compiler that way), or rustup's nightly with the component rust-src.
const TOOLCHAINS: [&str; 2] = ["bpf", "nightly"];

/// What the object depends on, relative to this package.
const SOURCES: [&str; 5] = [
    "../ebpf/Cargo.toml",
    "../ebpf/src",
    "../ebpf/abi/Cargo.toml",
    "../ebpf/abi/src",
    "../Cargo.lock",
];

fn main() -> Result<()> {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rerun-if-changed=build.rs");

    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let object = out_dir.join("sluice.bpf.o");
    match toolchain() {
        Ok(toolchain) => {
            let built = build(toolchain, &out_dir)?;
            fs::copy(&built, &object)
                .with_context(|| format!("copy {} to {}", built.display(), object.display()))?;
        }
        Err(missing) => {
            println!("cargo:rerun-if-changed={}", tools_directory().display());
            fs::write(&object, []).with_context(|| format!("write {}", object.display()))?;
            println!(
                "cargo:warning=built without eBPF programs, since {missing}; `cargo xtask setup` \
                 installs what is needed"
            );
        }
    }
    Ok(())
}

/// Where cargo installs programs: once something new is there, it is worth another try.
fn tools_directory() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    home.unwrap_or_default().join("bin")
}

/// The toolchain to build with, or what is missing.
fn toolchain() -> Result<&'static str, String> {
    if find_in_path("bpf-linker").is_none() {
        return Err("bpf-linker is not installed".to_owned());
    }
    TOOLCHAINS.into_iter().find(|name| has_library_source(name)).ok_or_else(|| {
        format!("no toolchain of {} has the library's source", TOOLCHAINS.join(", "))
    })
}

fn has_library_source(toolchain: &str) -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .stderr(Stdio::null())
        .output();
    match sysroot {
        Ok(output) if output.status.success() => {
            let sysroot = String::from_utf8_lossy(&output.stdout);
            Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
        }
        _ => false,
    }
}

fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Builds the object and says where it is.
fn build(toolchain: &str, out_dir: &Path) -> Result<PathBuf> {
    let endian = env::var("CARGO_CFG_TARGET_ENDIAN").context("CARGO_CFG_TARGET_ENDIAN")?;
    let target = if endian == "big" { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH")?;
    // Debug information becomes BTF, which describes the maps.
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    // Not the directory of the build that runs this: cargo holds its lock.
    let target_dir = out_dir.join("bpf");

    let mut command = Command::new("rustup");
    command
        .args(["run", toolchain, "cargo", "build", "--quiet", "--release", "--bins"])
        .args(["--package", "sluice-ebpf", "--target", target, "-Z", "build-std=core"])
        .args([OsStr::new("--target-dir"), target_dir.as_os_str()])
        // The library is built from source for this target, which a stable compiler allows thus.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // They point to the compiler, or to clippy, of the build that runs this.
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "CARGO"] {
        command.env_remove(name);
    }
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "the eBPF programs do not build ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(target_dir.join(target).join("release").join("sluice"))
}
