//! From a path in a module to the module that defines what the path names.

use std::collections::BTreeSet;

use crate::tree::{ModuleId, Name, Tree};

impl Tree {
    /// The modules that define the item at `path`, seen from `module`: none if the path leads out
    /// of the crate or to a module, several if the name has several meanings.
    pub(crate) fn defining_modules(&self, module: ModuleId, path: &[String]) -> BTreeSet<ModuleId> {
        let mut resolver = Resolver { tree: self, imports: Vec::new(), globs: Vec::new() };
        let targets = resolver.resolve(module, path);
        targets
            .into_iter()
            .filter_map(|target| match target {
                Target::Module(_) => None,
                Target::ItemOf(module) => Some(module),
            })
            .collect()
    }
}

/// The target of a path inside this crate.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Target {
    Module(ModuleId),
    /// An item that is defined in this module.
    ItemOf(ModuleId),
}

struct Resolver<'a> {
    tree: &'a Tree,
    /// The imports that are being resolved. An import may lead back to itself.
    imports: Vec<(ModuleId, &'a [String])>,
    /// The names that are being searched in glob imports. Modules may glob-import each other.
    globs: Vec<(ModuleId, String)>,
}

impl<'a> Resolver<'a> {
    fn resolve(&mut self, module: ModuleId, path: &[String]) -> BTreeSet<Target> {
        let Some((first, rest)) = path.split_first() else {
            return BTreeSet::new();
        };
        match first.as_str() {
            "crate" => self.descend(0, rest),
            "self" => self.descend(module, rest),
            "super" => match self.tree.modules[module].parent {
                // `super::super::x` continues with `super`.
                Some(parent) if rest.first().is_some_and(|next| next == "super") => {
                    self.resolve(parent, rest)
                }
                Some(parent) => self.descend(parent, rest),
                None => BTreeSet::new(),
            },
            _ => {
                let found = self.lookup(module, first);
                self.continue_with(found, rest)
            }
        }
    }

    /// Resolves a path whose first name is a name in `module`.
    fn descend(&mut self, module: ModuleId, path: &[String]) -> BTreeSet<Target> {
        let Some((first, rest)) = path.split_first() else {
            return BTreeSet::from([Target::Module(module)]);
        };
        let found = self.lookup(module, first);
        if found.is_empty() && !self.tree.modules[module].names.contains_key(first) {
            // A macro generates the item.
            return BTreeSet::from([Target::ItemOf(module)]);
        }
        self.continue_with(found, rest)
    }

    /// Resolves the rest of a path whose first part leads to `found`.
    fn continue_with(&mut self, found: BTreeSet<Target>, rest: &[String]) -> BTreeSet<Target> {
        if rest.is_empty() {
            return found;
        }
        // The path continues in a module if the name is that of one. Else it names a variant or an
        // associated item.
        let has_module = found.iter().any(|target| matches!(target, Target::Module(_)));
        let mut targets = BTreeSet::new();
        for target in found {
            match target {
                Target::Module(module) => targets.extend(self.descend(module, rest)),
                Target::ItemOf(_) if has_module => {}
                Target::ItemOf(_) => {
                    targets.insert(target);
                }
            }
        }
        targets
    }

    /// The meanings of a name in a module, also through imports.
    fn lookup(&mut self, module: ModuleId, name: &str) -> BTreeSet<Target> {
        let scope = &self.tree.modules[module];
        let mut targets = BTreeSet::new();
        if let Some(meanings) = scope.names.get(name) {
            for meaning in meanings {
                match meaning {
                    Name::Module(child) => {
                        targets.insert(Target::Module(*child));
                    }
                    Name::Item => {
                        targets.insert(Target::ItemOf(module));
                    }
                    Name::Import(path) => targets.extend(self.resolve_import(module, path)),
                }
            }
            return targets;
        }
        let search = (module, name.to_owned());
        if self.globs.contains(&search) {
            return targets;
        }
        self.globs.push(search);
        for glob in &scope.globs {
            for target in self.resolve_import(module, glob) {
                if let Target::Module(module) = target {
                    targets.extend(self.lookup(module, name));
                }
            }
        }
        self.globs.pop();
        targets
    }

    fn resolve_import(&mut self, module: ModuleId, path: &'a [String]) -> BTreeSet<Target> {
        if self.imports.contains(&(module, path)) {
            return BTreeSet::new();
        }
        self.imports.push((module, path));
        let targets = self.resolve(module, path);
        self.imports.pop();
        targets
    }
}
