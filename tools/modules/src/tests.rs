use crate::{Tree, cycles};

/// The cycles of a crate that is called `a`, each as its modules.
fn cycles_of(source: &str) -> Vec<String> {
    let tree = Tree::parse("a", source).expect("valid Rust");
    cycles(tree).into_iter().map(|cycle| cycle.modules.join(" ")).collect()
}

#[test]
fn two_modules_that_import_each_other_are_a_cycle() {
    let source = "
        mod b { use crate::c::C; pub struct B(C); }
        mod c { use super::b::B; pub struct C(B); }
        mod d { use crate::b::B; pub struct D(B); }";
    assert_eq!(cycles_of(source), ["a::b a::c"]);
}

#[test]
fn a_cycle_may_have_any_length() {
    let source = "
        mod b { use crate::c::C; pub struct B; }
        mod c { use crate::d::D; pub struct C; }
        mod d { use crate::b::B; pub struct D; }";
    assert_eq!(cycles_of(source), ["a::b a::c a::d"]);
}

#[test]
fn modules_that_import_downward_are_no_cycle() {
    let source = "
        mod b { use crate::{c::C, d::D}; pub struct B; }
        mod c { use crate::d::D; pub struct C; }
        mod d { pub struct D; }";
    assert_eq!(cycles_of(source), [""; 0]);
}

#[test]
fn a_parent_that_declares_and_re_exports_children_is_no_cycle() {
    let source = "
        mod b {
            mod c { use super::D; pub struct C(D); }
            mod d { pub struct D; }
            pub use self::c::C;
            pub(crate) use d::D;
        }";
    assert_eq!(cycles_of(source), [""; 0]);
}

#[test]
fn a_parent_that_uses_a_child_which_uses_the_parent_is_a_cycle() {
    let source = "
        mod b {
            mod c { use super::B; pub fn c(_: B) {} }
            pub struct B;
            pub fn b() { c::c(B) }
        }";
    assert_eq!(cycles_of(source), ["a::b a::b::c"]);
}

#[test]
fn a_re_export_leads_to_the_defining_module() {
    let source = "
        mod b { pub use crate::c::C; pub struct B; }
        mod c { use crate::d::D; pub struct C; }
        mod d { use crate::b::C; pub struct D; }";
    assert_eq!(cycles_of(source), ["a::c a::d"]);
}

#[test]
fn a_glob_re_export_leads_to_the_defining_module() {
    let source = "
        mod b { pub use crate::c::*; }
        mod c { use crate::d::D; pub struct C; }
        mod d { use crate::b::C; pub struct D; }";
    assert_eq!(cycles_of(source), ["a::c a::d"]);
}

#[test]
fn modules_that_glob_import_each_other_are_a_cycle_if_they_use_each_others_items() {
    let source = "
        mod b { use crate::c::*; pub struct B; pub type D = C; pub type E = Missing; }
        mod c { use crate::b::*; pub struct C; pub type F = B; }
        mod d { use crate::e::*; pub struct G; }
        mod e { use crate::d::*; pub struct H(G); }";
    assert_eq!(cycles_of(source), ["a::b a::c"]);
}

#[test]
fn a_path_in_a_body_counts() {
    let source = "
        mod b { pub fn b() { crate::c::c() } }
        mod c { pub fn c() { if true { super::b::b() } } }";
    assert_eq!(cycles_of(source), ["a::b a::c"]);
}

#[test]
fn a_path_in_a_macro_call_counts() {
    let source = "
        mod b { pub fn b() { assert!(1 == crate::c::c()) } }
        mod c { pub fn c() -> u32 { println!(\"{:?}\", (super::b::b(), 1)); 1 } }";
    assert_eq!(cycles_of(source), ["a::b a::c"]);
}

#[test]
fn a_path_through_an_imported_module_counts() {
    let source = "
        mod b { use crate::c; pub fn b() { c::c() } }
        mod c { pub fn c() { use crate::b as other; other::b() } }";
    assert_eq!(cycles_of(source), ["a::b a::c"]);
}

#[test]
fn importing_a_module_alone_does_not_count() {
    let source = "
        mod b { use crate::c; pub mod e { pub struct E; } pub use self::e::E; }
        mod c { use crate::b; pub struct C(b::E); }";
    assert_eq!(cycles_of(source), [""; 0]);
}

#[test]
fn a_module_and_a_function_may_have_one_name() {
    let source = "
        mod b { mod c { pub fn c() { super::super::d::d() } pub fn e() {} } pub use c::c; }
        mod d { pub fn d() { crate::b::c() } }";
    assert_eq!(cycles_of(source), ["a::b::c a::d"]);
}

#[test]
fn an_associated_item_belongs_to_the_module_of_its_type() {
    let source = "
        mod b { pub struct B; impl B { pub fn new() -> u32 { crate::c::C::VALUE } } }
        mod c { pub struct C; impl C { pub const VALUE: u32 = crate::b::B::new(); } }";
    assert_eq!(cycles_of(source), ["a::b a::c"]);
}

#[test]
fn an_item_that_a_macro_generates_belongs_to_the_module_of_the_call() {
    let source = "
        mod b { number! { B } pub struct E(crate::c::C); }
        mod c { use crate::b::B; pub struct C; }";
    assert_eq!(cycles_of(source), ["a::b a::c"]);
}

#[test]
fn test_modules_and_items_do_not_count() {
    let source = "
        mod b { #[cfg(test)] mod tests { pub struct T; use crate::c::C; } pub struct B; }
        mod c {
            use crate::b::B;
            pub struct C;
            #[cfg(test)] fn c() { crate::d::d() }
        }
        mod d { use crate::c::C; pub fn d() {} }";
    assert_eq!(cycles_of(source), [""; 0]);
}

#[test]
fn names_of_other_crates_do_not_count() {
    let source = "
        mod b { use std::fmt; pub struct B; impl fmt::Display for B {} use crate::c::C; }
        mod c { use ::b::B; use d::b; pub struct C; }";
    assert_eq!(cycles_of(source), [""; 0]);
}

#[test]
fn the_dependencies_of_a_cycle_have_their_places() {
    let source = "
        mod b { use crate::c::C; pub struct B(C); }
        mod c { pub fn c() { super::b::B } pub struct C; }";
    let found = cycles(Tree::parse("a", source).expect("valid Rust"));
    let [cycle] = &found[..] else { panic!("one cycle, not {found:?}") };
    assert_eq!(
        cycle.to_string(),
        "cycle of 2 modules: a::b, a::c\n  \
           a::b -> a::c  (lib.rs:2: crate::c::C)\n  \
           a::c -> a::b  (lib.rs:3: super::b::B)\n"
    );
}
