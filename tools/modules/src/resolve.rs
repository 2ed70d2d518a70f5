//! From a path in a module to the module that defines what the path names.

use std::collections::BTreeSet;

use crate::tree::{ModuleId, Name, Tree};

/// What a path leads to, as far as it lies in this crate.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Target {
    Module(ModuleId),
    /// An item that is defined in this module.
    ItemOf(ModuleId),
}

impl Tree {
    /// The modules that define the item at `path`, seen from `module`: none if the path leads out
    /// of the crate or to a module, several if the name has several meanings.
    pub(crate) fn defining_modules(&self, module: ModuleId, path: &[String]) -> BTreeSet<ModuleId> {
        let targets = self.resolve(module, path, &mut Vec::new());
        targets
            .into_iter()
            .filter_map(|target| match target {
                Target::Module(_) => None,
                Target::ItemOf(module) => Some(module),
            })
            .collect()
    }

    /// `visited` holds the imports that are being resolved, because imports may lead back to
    /// themselves.
    fn resolve(
        &self,
        module: ModuleId,
        path: &[String],
        visited: &mut Vec<(ModuleId, Vec<String>)>,
    ) -> BTreeSet<Target> {
        let Some((first, rest)) = path.split_first() else {
            return BTreeSet::new();
        };
        match first.as_str() {
            "crate" => self.descend(0, rest, visited),
            "self" => self.descend(module, rest, visited),
            "super" => match self.modules[module].parent {
                // `super::super::x` continues with `super`.
                Some(parent) if rest.first().is_some_and(|next| next == "super") => {
                    self.resolve(parent, rest, visited)
                }
                Some(parent) => self.descend(parent, rest, visited),
                None => BTreeSet::new(),
            },
            _ => self.follow(self.lookup(module, first, visited), rest, visited),
        }
    }

    /// Resolves a path whose first name is a name in `module`.
    fn descend(
        &self,
        module: ModuleId,
        path: &[String],
        visited: &mut Vec<(ModuleId, Vec<String>)>,
    ) -> BTreeSet<Target> {
        let Some((first, rest)) = path.split_first() else {
            return BTreeSet::from([Target::Module(module)]);
        };
        let found = self.lookup(module, first, visited);
        if found.is_empty() {
            // A macro generates the item, or it is imported from another crate.
            let external = self.modules[module].names.contains_key(first);
            return if external { found } else { BTreeSet::from([Target::ItemOf(module)]) };
        }
        self.follow(found, rest, visited)
    }

    /// Resolves the rest of a path whose first part leads to `found`.
    fn follow(
        &self,
        found: BTreeSet<Target>,
        rest: &[String],
        visited: &mut Vec<(ModuleId, Vec<String>)>,
    ) -> BTreeSet<Target> {
        if rest.is_empty() {
            return found;
        }
        let is_module = |target: &Target| matches!(target, Target::Module(_));
        // A path continues in a module, if the name is that of one; else it names a variant or an
        // associated item.
        let modules_only = found.iter().any(is_module);
        let mut targets = BTreeSet::new();
        for target in found {
            match target {
                Target::Module(module) => targets.extend(self.descend(module, rest, visited)),
                Target::ItemOf(_) if modules_only => {}
                Target::ItemOf(_) => {
                    targets.insert(target);
                }
            }
        }
        targets
    }

    fn lookup(
        &self,
        module: ModuleId,
        name: &str,
        visited: &mut Vec<(ModuleId, Vec<String>)>,
    ) -> BTreeSet<Target> {
        let mut targets = BTreeSet::new();
        let scope = &self.modules[module];
        for meaning in scope.names.get(name).into_iter().flatten() {
            match meaning {
                Name::Module(child) => {
                    targets.insert(Target::Module(*child));
                }
                Name::Item => {
                    targets.insert(Target::ItemOf(module));
                }
                Name::Import(path) => {
                    targets.extend(self.resolve_import(module, path, visited));
                }
            }
        }
        if targets.is_empty() && !scope.names.contains_key(name) {
            for glob in &scope.globs {
                for target in self.resolve_import(module, glob, visited) {
                    if let Target::Module(module) = target {
                        targets.extend(self.lookup(module, name, visited));
                    }
                }
            }
        }
        targets
    }

    fn resolve_import(
        &self,
        module: ModuleId,
        path: &[String],
        visited: &mut Vec<(ModuleId, Vec<String>)>,
    ) -> BTreeSet<Target> {
        let import = (module, path.to_vec());
        if visited.contains(&import) {
            return BTreeSet::new();
        }
        visited.push(import);
        let targets = self.resolve(module, path, visited);
        visited.pop();
        targets
    }
}
