//! Compiles the BPF programs and passes the paths of their objects to the crate.

#[path = "../probes/compile.rs"]
mod compile;

fn main() {
    let compiler = compile::objects(&["balancer", "backend"]);
    if compiler.is_none() {
        println!(
            "cargo:warning=built without BPF programs, because SLUICE_SKIP_PROBES is set: \
             `sluice lb` will not start"
        );
    }
    println!("cargo:rustc-env=SLUICE_PROBES_COMPILER={}", compiler.as_deref().unwrap_or("none"));
}
