//! One encapsulated packet of each IP version, as a backend's wire carried it.

use super::Examination;
use crate::lab::decode::Encapsulated;
use crate::lab::topology::{Family, backends};
use anyhow::Result;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    for family in Family::BOTH {
        let captured = &examination.captured;
        let found = backends().find_map(|backend| {
            let packet = Encapsulated::first_syn(&captured.get(backend.name)?.frames, family)?;
            Some((backend, packet))
        });
        let what = format!("an encapsulated {} SYN reached a backend", family.name());
        examination.check(found.is_some(), what);
        let Some((backend, packet)) = found else { continue };
        examination.show.say(format!(
            "the first SYN over {} that reached {}:",
            family.name(),
            backend.name
        ));
        examination.show.say(packet.picture());
        for (what, held) in packet.statements(backend) {
            examination.check(held, what);
        }
    }
    Ok(())
}
