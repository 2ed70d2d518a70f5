//! The memory of maps in `sluice status`.

use serde::Serialize;

use crate::cli::table::table;
use crate::kernel::bpf::Usage;

/// The kernel memory of an instance's maps.
#[derive(Debug, Serialize)]
pub struct MemoryStatus {
    /// Bytes of all maps, without the programs.
    pub bytes: u64,
    /// The part of that which each possible CPU adds.
    pub bytes_per_cpu: u64,
    /// Each map.
    pub maps: Vec<Usage>,
}

impl MemoryStatus {
    /// The sum over maps.
    pub(super) fn of(maps: Vec<Usage>) -> Self {
        let bytes = maps.iter().map(|map| map.bytes).sum();
        let bytes_per_cpu = maps.iter().filter_map(|map| map.bytes_per_cpu).sum();
        Self { bytes, bytes_per_cpu, maps }
    }

    /// The text form.
    pub(super) fn text(&self) -> String {
        let number =
            |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
        let rows = self.maps.iter().map(|map| {
            let [entries, per_cpu] = [number(map.entries), number(map.bytes_per_cpu)];
            [map.name.clone(), entries, map.capacity.to_string(), map.bytes.to_string(), per_cpu]
        });
        let total = [
            "in all".to_owned(),
            String::new(),
            String::new(),
            self.bytes.to_string(),
            self.bytes_per_cpu.to_string(),
        ];
        table(
            ["map", "entries", "capacity", "bytes locked", "of them per CPU"],
            &[1, 2, 3, 4],
            rows.chain([total]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_and_every_map_are_shown() {
        let usage = |name: &str, entries, bytes_per_cpu| Usage {
            name: name.to_owned(),
            entries,
            capacity: 9,
            bytes: 4096,
            bytes_per_cpu,
        };
        let memory =
            MemoryStatus::of(vec![usage("VIPS", Some(2), None), usage("REASONS", None, Some(72))]);
        assert_eq!((memory.bytes, memory.bytes_per_cpu), (8192, 72));
        assert_eq!(
            memory.text(),
            " map      entries  capacity  bytes locked  of them per CPU\n \
             VIPS           2         9          4096\n \
             REASONS                  9          4096               72\n \
             in all                              8192               72\n"
        );
    }
}
