//! The graph of a crate's modules, and its cycles.

use std::collections::BTreeMap;
use std::fmt;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use crate::references::references;
use crate::tree::{Module, ModuleId, Tree};

/// Modules that depend on each other.
#[derive(Debug)]
pub struct Cycle {
    /// The modules' paths, sorted.
    pub modules: Vec<String>,
    /// Every dependency between these modules.
    pub dependencies: Vec<Dependency>,
}

/// A module names an item of another.
#[derive(Debug)]
pub struct Dependency {
    /// The path of the module that contains the name.
    pub from: String,
    /// The path of the module that defines the item.
    pub to: String,
    /// The first place of such a name: file, line, and the name as it is written there.
    pub example: String,
}

/// Finds the cycles of a crate: the strongly connected components of more than one module.
pub fn cycles(mut tree: Tree) -> Vec<Cycle> {
    let examples = dependencies(&mut tree);
    let graph: DiGraphMap<ModuleId, ()> = examples.keys().copied().collect();
    let mut cycles: Vec<Cycle> = tarjan_scc(&graph)
        .into_iter()
        .filter(|component| component.len() > 1)
        .map(|mut component| {
            component.sort_unstable();
            let path = |module: ModuleId| tree.modules[module].path.clone();
            let inside = |&(&(from, to), _): &(&(ModuleId, ModuleId), &String)| {
                component.contains(&from) && component.contains(&to)
            };
            let dependencies = examples.iter().filter(inside).map(|(&(from, to), example)| {
                Dependency { from: path(from), to: path(to), example: example.clone() }
            });
            let dependencies = dependencies.collect();
            let mut modules: Vec<String> = component.iter().map(|&module| path(module)).collect();
            modules.sort_unstable();
            Cycle { modules, dependencies }
        })
        .collect();
    cycles.sort_unstable_by(|a, b| a.modules.cmp(&b.modules));
    cycles
}

/// The dependencies of all modules, each with its first place.
fn dependencies(tree: &mut Tree) -> BTreeMap<(ModuleId, ModuleId), String> {
    let mut found: Vec<Vec<(Vec<String>, usize)>> = Vec::new();
    for module in &mut tree.modules {
        let items: Vec<_> = module.items.iter().map(references).collect();
        let mut paths = Vec::new();
        for item in items {
            item.uses.iter().for_each(|declaration| module.import(declaration));
            paths.extend(item.paths.into_iter().map(|found| (found.path, found.line)));
        }
        let imports = module.imports.iter().map(|import| (import.path.clone(), import.line));
        paths.splice(..0, imports);
        // Stable: an import comes before a path in the same line.
        paths.sort_by_key(|&(_, line)| line);
        found.push(paths);
    }
    let mut examples = BTreeMap::new();
    for (from, paths) in found.into_iter().enumerate() {
        for (path, line) in paths {
            for to in tree.defining_modules(from, &path) {
                if from != to {
                    let place = || example(&tree.modules[from], &path, line);
                    examples.entry((from, to)).or_insert_with(place);
                }
            }
        }
    }
    examples
}

fn example(module: &Module, path: &[String], line: usize) -> String {
    format!("{}:{line}: {}", module.file.display(), path.join("::"))
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cycle of {} modules: {}", self.modules.len(), self.modules.join(", "))?;
        for Dependency { from, to, example } in &self.dependencies {
            writeln!(f, "  {from} -> {to}  ({example})")?;
        }
        Ok(())
    }
}
