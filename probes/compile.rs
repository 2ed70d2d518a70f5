//! Compiles objects of this crate for the BPF target. The build scripts of crates that load the
//! objects include this file.
//!
//! The BPF target requires a `core` library for `bpfel-unknown-none`, unstable compiler features,
//! and a `bpf-linker` built against the compiler's LLVM version. A stable Rust toolchain has none
//! of them. Two toolchains are supported, tried in this order:
//!
//! 1. a compiler whose sysroot contains a precompiled `core` (Debian: packages `rustc-web` and
//!    `libstd-rust-web-dev-bpf`),
//! 2. rustup's nightly toolchain with `rust-src`, which builds `core` from source.
//!
//! Environment: `SLUICE_BPF_RUSTC` is the path of a compiler of the first kind.
//! `SLUICE_SKIP_PROBES=1` builds without eBPF programs, for checks on machines without the
//! toolchain; the resulting binary does not start a daemon.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "bpfel-unknown-none";

/// Compiles the named objects into `OUT_DIR` and sets `SLUICE_<NAME>_OBJECT` to the path of each
/// for the crate. Returns a description of the compiler. With `SLUICE_SKIP_PROBES=1`, the files are
/// empty and the result is `None`. Exits the build script with a message on failure.
pub(crate) fn objects(names: &[&str]) -> Option<String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = root.parent().expect("the crate is in the workspace");
    for input in [
        "probes/src",
        "probes/Cargo.toml",
        "probes/compile.rs",
        "datapath/src",
        "datapath/Cargo.toml",
        "Cargo.toml",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    for variable in ["SLUICE_BPF_RUSTC", "SLUICE_SKIP_PROBES", "PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for name in names {
        let variable = format!("SLUICE_{}_OBJECT", name.to_uppercase());
        println!("cargo:rustc-env={variable}={}", out.join(name).display());
    }

    if env::var_os("SLUICE_SKIP_PROBES").is_some_and(|value| value == "1") {
        for name in names {
            fs::write(out.join(name), []).expect("OUT_DIR is writable");
        }
        return None;
    }
    let compiler = Compiler::find().unwrap_or_else(|| {
        fail(
            "no compiler for the BPF target was found. `make setup` installs one; elsewhere: \
             `rustup toolchain install nightly --component rust-src`",
        )
    });
    let linker = linker_directory(&compiler.llvm()).unwrap_or_else(|| {
        fail(&format!(
            "bpf-linker for LLVM {} was not found on PATH or in {}. `make setup` builds it",
            compiler.llvm(),
            tools_directory().display()
        ))
    });
    build(root, &out, names, &compiler, &linker);
    Some(compiler.describe())
}

/// A compiler for the BPF target.
enum Compiler {
    /// A `rustc` with a precompiled `core`.
    WithCore(PathBuf),
    /// rustup's nightly toolchain, which builds `core` from source.
    Nightly,
}

impl Compiler {
    fn find() -> Option<Self> {
        let from_env = env::var_os("SLUICE_BPF_RUSTC").map(PathBuf::from);
        let candidates = from_env.into_iter().chain(["/usr/bin/rustc".into(), "rustc".into()]);
        for rustc in candidates {
            let Some(sysroot) = output(&mut Command::new(&rustc), &["--print", "sysroot"]) else {
                continue;
            };
            let libraries = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib");
            let has_core = fs::read_dir(libraries).is_ok_and(|entries| {
                entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with("libcore-"))
            });
            if has_core {
                return Some(Self::WithCore(rustc));
            }
        }
        let sysroot = output(&mut nightly("rustc"), &["--print", "sysroot"])?;
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
            .then_some(Self::Nightly)
    }

    fn version(&self) -> String {
        let mut command = match self {
            Self::WithCore(rustc) => Command::new(rustc),
            Self::Nightly => nightly("rustc"),
        };
        output(&mut command, &["-vV"]).unwrap_or_default()
    }

    /// LLVM's major version.
    fn llvm(&self) -> String {
        let version = self.version();
        let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        line.and_then(|v| v.split('.').next()).unwrap_or("unknown").to_owned()
    }

    fn describe(&self) -> String {
        let version = self.version();
        let release = version.lines().next().unwrap_or("rustc").to_owned();
        match self {
            Self::WithCore(_) => format!("{release}, LLVM {}", self.llvm()),
            Self::Nightly => format!("{release}, LLVM {}, core built from source", self.llvm()),
        }
    }

    fn cargo(&self) -> Command {
        match self {
            Self::WithCore(rustc) => {
                let mut cargo =
                    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut cargo = nightly("cargo");
                cargo.env_remove("RUSTC").args(["-Z", "build-std=core"]);
                cargo
            }
        }
    }
}

fn nightly(tool: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", tool]).env_remove("RUSTUP_TOOLCHAIN");
    command
}

/// The directory in which `make setup` installs the tools that it builds.
fn tools_directory() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    cache.unwrap_or_else(|| "/var/cache".into()).join("sluice")
}

/// The directory of the `bpf-linker` for an LLVM version: the one that `make setup` built, else the
/// one on PATH.
fn linker_directory(llvm: &str) -> Option<PathBuf> {
    let built =
        fs::read_dir(tools_directory()).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut built: Vec<_> = built
        .filter(|path| {
            path.file_name().is_some_and(|n| n.to_string_lossy().ends_with(&format!("-llvm{llvm}")))
        })
        .map(|path| path.join("bin"))
        .filter(|path| path.join("bpf-linker").is_file())
        .collect();
    built.sort();
    let on_path = env::var_os("PATH").and_then(|path| {
        env::split_paths(&path).find(|directory| directory.join("bpf-linker").is_file())
    });
    built.pop().or(on_path)
}

fn build(root: &Path, out: &Path, objects: &[&str], compiler: &Compiler, linker: &Path) {
    let target = out.join("probes");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([linker.to_owned()].into_iter().chain(env::split_paths(&path)))
        .expect("PATH is valid");
    let mut cargo = compiler.cargo();
    // Cargo and clippy set these variables for the crate being built, not for `sluice-probes`.
    for variable in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(variable);
    }
    cargo
        .current_dir(root)
        .args(["build", "--package", "sluice-probes", "--profile", "bpf", "--target", TARGET])
        .args(objects.iter().flat_map(|object| ["--bin", object]))
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C link-arg=--btf -C debuginfo=2")
        .env("PATH", path);
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(_) => fail("the BPF programs do not compile; see above"),
        Err(error) => fail(&format!("cannot run cargo for the BPF programs: {error}")),
    }
    for object in objects {
        let built = target.join(TARGET).join("bpf").join(object);
        fs::copy(&built, out.join(object))
            .unwrap_or_else(|error| fail(&format!("{}: {error}", built.display())));
    }
}

fn output<S: AsRef<OsStr>>(command: &mut Command, arguments: &[S]) -> Option<String> {
    let output = command.args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn fail(message: &str) -> ! {
    eprintln!("sluice: {message}");
    exit(1)
}
