//! No module of this workspace is part of an import cycle.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sluice_modules::{Tree, cycles};

#[test]
fn no_module_is_part_of_an_import_cycle() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .expect("cargo runs");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("valid JSON");
    let root = Path::new(text(&metadata["workspace_root"]));
    std::env::set_current_dir(root).expect("the workspace is readable");

    let mut modules = 0;
    let mut found = String::new();
    for package in list(&metadata["packages"]) {
        for target in list(&package["targets"]) {
            let file = Path::new(text(&target["src_path"]));
            let file = file.strip_prefix(root).unwrap_or(file);
            let name = text(&target["name"]).replace('-', "_");
            let tree = Tree::read(&name, file).expect("the sources are readable");
            modules += tree.len();
            cycles(tree).iter().for_each(|cycle| found += &cycle.to_string());
        }
    }
    assert!(modules > 200, "only {modules} modules");
    assert!(found.is_empty(), "modules import each other:\n{found}");
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}
