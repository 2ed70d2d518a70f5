//! The maps of `abi::maps` in plain memory: one field per map.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;

use super::table::TableWords;
use crate::abi::maps::{
    Array, ArrayOfArrays, ArrayOfTries, Counters, Hash, LpmTrie, LruHash, PerCpuArray, RingBuffer,
    SparseHash,
};
use crate::abi::*;

/// How a kind of map is kept in memory. Maps grow without a bound, per-CPU arrays are those of one
/// CPU, and an array has only the elements that were written.
pub trait InMemory {
    /// The content of the map.
    type Content: Debug + Default;
}

impl<K: Debug + Ord, V: Debug> InMemory for Hash<K, V> {
    type Content = RefCell<BTreeMap<K, V>>;
}

impl<K: Debug + Ord, V: Debug> InMemory for SparseHash<K, V> {
    type Content = RefCell<BTreeMap<K, V>>;
}

impl<K: Debug + Ord, V: Debug> InMemory for LpmTrie<K, V> {
    type Content = RefCell<BTreeMap<K, V>>;
}

impl<K: Debug + Ord, V: Debug> InMemory for LruHash<K, V> {
    type Content = RefCell<BTreeMap<K, V>>;
}

impl<V: Debug> InMemory for Array<V> {
    type Content = RefCell<BTreeMap<u32, V>>;
}

impl<V: Debug> InMemory for PerCpuArray<V> {
    type Content = RefCell<BTreeMap<u32, V>>;
}

impl<V: Debug> InMemory for Counters<V> {
    type Content = RefCell<BTreeMap<u32, V>>;
}

impl<V> InMemory for ArrayOfArrays<V> {
    type Content = BTreeMap<u32, TableWords>;
}

impl<K: Debug + Ord, V: Debug> InMemory for ArrayOfTries<K, V> {
    type Content = BTreeMap<u32, BTreeMap<K, V>>;
}

impl<E: Debug> InMemory for RingBuffer<E> {
    type Content = RefCell<Vec<E>>;
}

/// Declares a struct with the maps of a list.
macro_rules! memory_maps {
    (
        $maps:ident $of:literal
        $(
            $(#[doc = $doc:literal])+
            $field:ident $name:ident: $kind:ident<$($type:ty),+>,
            $size:ident $(($($argument:expr),+))?, $writer:ident $(, $unpinned:ident)?;
        )+
    ) => {
        #[doc = concat!("The maps of the ", $of, "'s programs in plain memory.")]
        #[derive(Debug, Default)]
        pub struct $maps {
            $(
                $(#[doc = $doc])+
                pub $field: <$kind<$($type),+> as InMemory>::Content,
            )+
        }
    };
}

crate::balancer_maps!(memory_maps MemoryBalancerMaps "balancer");
crate::backend_maps!(memory_maps MemoryBackendMaps "backend");
