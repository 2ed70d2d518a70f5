//! Compiles the programs that measurements compare with, which no binary for users holds.

#[path = "../probes/compile.rs"]
mod compile;

fn main() {
    compile::objects(&["baseline"]);
}
