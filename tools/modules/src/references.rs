//! The paths that a module's items contain.

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ItemMacro, ItemUse, Macro, Path, TraitItem, VisRestricted};

use crate::tree::{attributes, is_test_only};

/// A path in the source text.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

/// The result of [`references`].
#[derive(Default)]
pub(crate) struct References {
    pub(crate) paths: Vec<Reference>,
    /// `use` declarations in function bodies.
    pub(crate) uses: Vec<ItemUse>,
}

/// Collects the paths in an item: in types, expressions, patterns, attributes and macro calls.
pub(crate) fn references(item: &Item) -> References {
    let mut found = References::default();
    found.visit_item(item);
    found
}

impl<'ast> Visit<'ast> for References {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test_only(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_test_only(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let attributes = match item {
            TraitItem::Const(item) => &item.attrs,
            TraitItem::Fn(item) => &item.attrs,
            TraitItem::Type(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_test_only(attributes) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_item_use(&mut self, declaration: &'ast ItemUse) {
        self.uses.push(declaration.clone());
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.leading_colon.is_none() {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string());
            self.paths.push(Reference { path: segments.collect(), line: path.span().start().line });
        }
        visit::visit_path(self, path);
    }

    /// `pub(in path)` names modules only.
    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.scan(list.tokens.clone());
        }
    }

    fn visit_item_macro(&mut self, item: &'ast ItemMacro) {
        if item.mac.path.is_ident("macro_rules") {
            // Only paths that mean the same at every call.
            let mut inner = Self::default();
            inner.scan(item.mac.tokens.clone());
            inner.paths.retain(|reference| reference.path[0] == "crate");
            self.paths.extend(inner.paths);
        } else {
            visit::visit_item_macro(self, item);
        }
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.scan(call.tokens.clone());
    }
}

impl References {
    /// Collects what has the form of a path in the arguments of a macro: names, separated by `::`,
    /// that are neither fields (`.name`) nor labels (`name: value`, `name = value`).
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => {
                    self.scan(group.stream());
                    at += 1;
                }
                TokenTree::Ident(first) => {
                    let field = at > 0
                        && is_punct(&tokens[at - 1], '.')
                        && !(at > 1 && is_punct(&tokens[at - 2], '.'));
                    let absolute = at > 1 && is_double_colon(&tokens[at - 2..]);
                    let line = first.span().start().line;
                    let mut path = vec![first.to_string()];
                    at += 1;
                    while is_double_colon(&tokens[at..])
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 2)
                    {
                        path.push(next.to_string());
                        at += 3;
                    }
                    let label = path.len() == 1 && is_label(&tokens[at..]);
                    if !field && !absolute && !label {
                        self.paths.push(Reference { path, line });
                    }
                }
                _ => at += 1,
            }
        }
    }
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

fn is_double_colon(tokens: &[TokenTree]) -> bool {
    tokens.len() > 1 && is_punct(&tokens[0], ':') && is_punct(&tokens[1], ':')
}

/// Whether these tokens make the name before them that of a field or an argument.
fn is_label(tokens: &[TokenTree]) -> bool {
    let next_is = |character| tokens.first().is_some_and(|token| is_punct(token, character));
    let then_is = |character| tokens.get(1).is_some_and(|token| is_punct(token, character));
    (next_is(':') && !then_is(':')) || (next_is('=') && !then_is('=') && !then_is('>'))
}
