//! The modules of a crate and the names in each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use syn::spanned::Spanned as _;
use syn::{Attribute, Expr, ExprLit, Item, ItemUse, Lit, Meta, UseTree, Visibility};

/// A module's index in [`Tree::modules`].
pub(crate) type ModuleId = usize;

/// The modules of one crate (of one target of a package), root first.
#[derive(Default)]
pub struct Tree {
    pub(crate) modules: Vec<Module>,
}

pub(crate) struct Module {
    /// The path from the crate's name on, such as `sluice::kernel::bpf`.
    pub(crate) path: String,
    pub(crate) file: PathBuf,
    pub(crate) parent: Option<ModuleId>,
    pub(crate) names: HashMap<String, Vec<Name>>,
    /// Paths of `use path::*`.
    pub(crate) globs: Vec<Vec<String>>,
    pub(crate) imports: Vec<Import>,
    /// All items but modules and `use` declarations.
    pub(crate) items: Vec<Item>,
}

/// One meaning of a name in a module; a name may have one per namespace.
#[derive(Clone, Debug)]
pub(crate) enum Name {
    Module(ModuleId),
    Item,
    /// Imported or re-exported from this path.
    Import(Vec<String>),
}

/// A private `use` of one item.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

/// Where the file of a child module is looked for.
struct Location<'a> {
    file: &'a Path,
    /// The directory of child modules' files.
    directory: PathBuf,
}

impl Tree {
    /// Reads the crate called `name` from its root file.
    pub fn read(name: &str, root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let directory = root.parent().unwrap_or(Path::new("")).to_owned();
        tree.add_file(name.to_owned(), None, root, directory)?;
        Ok(tree)
    }

    /// Parses a crate that is one source text.
    pub fn parse(name: &str, source: &str) -> Result<Self> {
        let mut tree = Self::default();
        let location = Location { file: Path::new("lib.rs"), directory: PathBuf::new() };
        tree.add(name.to_owned(), None, syn::parse_file(source)?.items, &location)?;
        Ok(tree)
    }

    /// The number of modules.
    #[expect(clippy::len_without_is_empty, reason = "a crate has a root module")]
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    fn add_file(
        &mut self,
        path: String,
        parent: Option<ModuleId>,
        file: &Path,
        directory: PathBuf,
    ) -> Result<ModuleId> {
        let context = || format!("{}: cannot be read as Rust", file.display());
        let source = std::fs::read_to_string(file).with_context(context)?;
        let items = syn::parse_file(&source).with_context(context)?.items;
        self.add(path, parent, items, &Location { file, directory })
    }

    fn add(
        &mut self,
        path: String,
        parent: Option<ModuleId>,
        items: Vec<Item>,
        location: &Location<'_>,
    ) -> Result<ModuleId> {
        let id = self.modules.len();
        self.modules.push(Module {
            path,
            file: location.file.to_owned(),
            parent,
            names: HashMap::new(),
            globs: Vec::new(),
            imports: Vec::new(),
            items: Vec::new(),
        });
        for item in items {
            if is_test_only(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(module) => {
                    let name = module.ident.to_string();
                    let path = format!("{}::{name}", self.modules[id].path);
                    let child = match module.content {
                        Some((_, items)) => {
                            let directory = location.directory.join(&name);
                            let inner = Location { file: location.file, directory };
                            self.add(path, Some(id), items, &inner)?
                        }
                        None => {
                            let (file, directory) = find(location, &name, &module.attrs)?;
                            self.add_file(path, Some(id), &file, directory)?
                        }
                    };
                    self.modules[id].define(name, Name::Module(child));
                }
                Item::Use(declaration) => self.modules[id].import(&declaration),
                item => {
                    if let Some(name) = defined_name(&item) {
                        self.modules[id].define(name.clone(), Name::Item);
                        if is_exported_macro(&item) && id != 0 {
                            let path = self.path_of(id).chain([name.clone()]).collect();
                            self.modules[0].define(name, Name::Import(path));
                        }
                    }
                    self.modules[id].items.push(item);
                }
            }
        }
        Ok(id)
    }

    /// The path of a module from `crate` on.
    fn path_of(&self, module: ModuleId) -> impl Iterator<Item = String> {
        let path = &self.modules[module].path;
        ["crate"].into_iter().chain(path.split("::").skip(1)).map(str::to_owned)
    }
}

impl Module {
    pub(crate) fn define(&mut self, name: String, meaning: Name) {
        self.names.entry(name).or_default().push(meaning);
    }

    /// Notes the names of a `use` declaration, and its paths if it is a private one.
    pub(crate) fn import(&mut self, declaration: &ItemUse) {
        if declaration.leading_colon.is_some() {
            return;
        }
        let private = matches!(declaration.vis, Visibility::Inherited);
        self.import_tree(&declaration.tree, &mut Vec::new(), private);
    }

    fn import_tree(&mut self, tree: &UseTree, prefix: &mut Vec<String>, private: bool) {
        let (last, name) = match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.import_tree(&path.tree, prefix, private);
                prefix.pop();
                return;
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import_tree(tree, prefix, private);
                }
                return;
            }
            UseTree::Glob(_) => {
                self.globs.push(prefix.clone());
                return;
            }
            UseTree::Name(name) => (&name.ident, &name.ident),
            UseTree::Rename(rename) => (&rename.ident, &rename.rename),
        };
        let mut path = prefix.clone();
        let mut name = name.to_string();
        if last != "self" {
            path.push(last.to_string());
        } else if name == "self" {
            name = prefix.last().cloned().unwrap_or_default();
        }
        if private {
            self.imports.push(Import { path: path.clone(), line: tree.span().start().line });
        }
        if name != "_" {
            self.define(name, Name::Import(path));
        }
    }
}

/// The file of a child module that is not inline, and the directory of its own children's files.
fn find(
    location: &Location<'_>,
    name: &str,
    attributes: &[Attribute],
) -> Result<(PathBuf, PathBuf)> {
    if let Some(path) = path_attribute(attributes) {
        let file = location.file.parent().unwrap_or(Path::new("")).join(path);
        let directory = file.parent().unwrap_or(Path::new("")).to_owned();
        return Ok((file, directory));
    }
    let directory = location.directory.join(name);
    for file in [directory.with_extension("rs"), directory.join("mod.rs")] {
        if file.is_file() {
            return Ok((file, directory));
        }
    }
    bail!("{}: the file of module {name} is missing", location.file.display())
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("path") => match &meta.value {
            Expr::Lit(ExprLit { lit: Lit::Str(path), .. }) => Some(path.value()),
            _ => None,
        },
        _ => None,
    })
}

/// Whether one of the attributes is `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
pub(crate) fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string().replace(' ', "");
            condition == "test" || condition.starts_with("all(test,")
        }
        _ => false,
    })
}

fn is_exported_macro(item: &Item) -> bool {
    matches!(item, Item::Macro(_))
        && attributes(item).iter().any(|attribute| attribute.path().is_ident("macro_export"))
}

fn defined_name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

pub(crate) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
