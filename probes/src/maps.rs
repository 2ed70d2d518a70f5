//! Maps as statics of a program's object, from the lists in [`sluice_datapath::abi::maps`].
//!
//! The types here are the kinds of that module for aya's BTF maps. `N` is the number of entries in
//! the object: the loader sets that of every map whose size is not fixed, and 1 is the smallest
//! that the kernel accepts.

use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps;
use sluice_datapath::abi::maps::{TrieKey, TrieValue};

/// A hash map.
pub type Hash<K, V, const N: usize> = btf_maps::HashMap<K, V, N>;

/// A hash map that allocates entries on insertion.
pub type SparseHash<K, V, const N: usize> =
    btf_maps::HashMap<K, V, N, { BPF_F_NO_PREALLOC as usize }>;

/// A longest-prefix-match trie. aya's key has the prefix length and the bits as two fields, packed;
/// a [`TrieKey`] has the same bytes.
pub type LpmTrie<K, V, const N: usize> = btf_maps::LpmTrie<<K as TrieKey>::Data, V, N>;

/// A hash map that evicts the least recently used entries.
pub type LruHash<K, V, const N: usize> = btf_maps::LruHashMap<K, V, N>;

/// An array.
pub type Array<V, const N: usize> = btf_maps::Array<V, N>;

/// An array with values for each CPU.
pub type PerCpuArray<V, const N: usize> = btf_maps::PerCpuArray<V, N>;

/// An array with 64-bit counters for each CPU.
pub type Counters<V, const N: usize> = btf_maps::PerCpuArray<V, N>;

/// An inner array of any length (`BPF_F_INNER_MAP`) that the daemon fills through memory
/// (`BPF_F_MMAPABLE`).
pub type InnerArray<V> = btf_maps::Array<V, 1, { (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize }>;

/// An array of arrays.
pub type ArrayOfArrays<V, const N: usize> = btf_maps::ArrayOfMaps<InnerArray<V>, N>;

/// An array of longest-prefix-match tries, each of as many prefixes as it needs.
pub type ArrayOfTries<K, V, const N: usize> =
    btf_maps::ArrayOfMaps<btf_maps::LpmTrie<<K as TrieKey>::Data, <V as TrieValue>::Word, 1>, N>;

/// A ring buffer of `N` bytes.
pub type RingBuffer<E, const N: usize> = btf_maps::RingBuf<E, N>;

/// Declares the maps of a list as statics: `sluice_datapath::balancer_maps!(statics);`.
#[macro_export]
macro_rules! statics {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident $name:ident: $kind:ident<$($type:ty),+>,
        $size:ident $(($($argument:expr),+))?, $writer:ident $(, $unpinned:ident)?;
    )+) => {
        $(
            $(#[doc = $doc])+
            #[aya_ebpf::macros::btf_map]
            pub static $name: $crate::maps::$kind<
                $($type,)+ { $crate::entries!($size $(($($argument),+))?) }
            > = <$crate::maps::$kind<
                $($type,)+ { $crate::entries!($size $(($($argument),+))?) }
            >>::new();
        )+
    };
}

/// The number of entries that the object gives a map.
#[doc(hidden)]
#[macro_export]
macro_rules! entries {
    (Fixed($entries:expr)) => {
        $entries as usize
    };
    ($size:ident $(($($argument:expr),+))?) => {
        1
    };
}
