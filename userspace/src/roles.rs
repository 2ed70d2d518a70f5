//! The table of roles.
//!
//! Lock, journal, pins, loading, attaching and teardown work from a role's row. A role adds to it
//! the behaviour of its daemon (`daemon::core::RoleDaemon`).

use sluice_control::config::Priority;

use crate::kernel::attach::{AttachPoint, Attachment, TcFilter};
use crate::kernel::bpf::{self, Object, ProgramSpec};
use crate::kernel::netlink::{Direction, FilterSpec};
use crate::role::Role;

/// A row of the table.
pub(crate) struct RoleSpec {
    /// The name of the role, of its lock, its journal and its pins.
    pub(crate) role: Role,
    /// The object that holds its programs and declares its maps.
    pub(crate) object: &'static Object,
    /// The programs, and where each is attached.
    pub(crate) programs: &'static [RoleProgram],
    /// The priority of the filters.
    priority: fn(Priority) -> u16,
    /// The setting of the priority, for messages.
    setting: &'static str,
}

impl RoleSpec {
    /// The name of the role's filter at TC ingress, for an instance.
    pub(crate) fn ingress_filter(&self, instance: &str) -> String {
        let is_ingress = |program: &&RoleProgram| program.direction == Direction::Ingress;
        let program = self.programs.iter().find(is_ingress);
        program.map(|program| program.filter_name(instance)).unwrap_or_default()
    }

    /// The instance of a filter of this role, by the filter's name.
    pub(crate) fn instance_of<'a>(&self, filter: &'a str) -> Option<&'a str> {
        let instance =
            |program: &RoleProgram| filter.strip_prefix(program.filter)?.strip_prefix(':');
        self.programs.iter().find_map(instance)
    }

    /// The attachment of one of the programs for an instance.
    pub(crate) fn attachment(
        &self,
        program: &RoleProgram,
        instance: &str,
        priority: Priority,
    ) -> Attachment {
        Attachment::new(AttachPoint::Tc(TcFilter {
            spec: FilterSpec {
                name: program.filter_name(instance),
                priority: (self.priority)(priority),
            },
            direction: program.direction,
            setting: self.setting,
        }))
    }
}

/// A program of a role and its place at TC.
pub(crate) struct RoleProgram {
    /// The program.
    pub(crate) program: ProgramSpec,
    /// The filter's name, without the instance.
    filter: &'static str,
    direction: Direction,
}

impl RoleProgram {
    fn filter_name(&self, instance: &str) -> String {
        format!("{}:{instance}", self.filter)
    }
}

/// `sluice lb`: encapsulates packets to VIPs.
pub(crate) static LB: RoleSpec = RoleSpec {
    role: Role::Lb,
    object: &bpf::BALANCER,
    programs: &[RoleProgram {
        program: bpf::BALANCER_TC,
        filter: "sluice_lb",
        direction: Direction::Ingress,
    }],
    priority: |priority| priority.lb,
    setting: "priority.lb",
};

/// `sluice backend`: decapsulates, and clamps the MSS option. Its filters come after the balancer's
/// on a host that has both roles.
pub(crate) static BACKEND: RoleSpec = RoleSpec {
    role: Role::Backend,
    object: &bpf::BACKEND,
    programs: &[
        RoleProgram {
            program: bpf::DECAPSULATE,
            filter: "sluice_backend",
            direction: Direction::Ingress,
        },
        RoleProgram { program: bpf::CLAMP, filter: "sluice_clamp", direction: Direction::Egress },
    ],
    priority: |priority| priority.backend,
    setting: "priority.backend",
};

/// The row of a role.
pub(crate) fn spec(role: Role) -> &'static RoleSpec {
    match role {
        Role::Lb => &LB,
        Role::Backend => &BACKEND,
    }
}

/// All roles.
pub(crate) static ROLES: [&RoleSpec; 2] = [&LB, &BACKEND];
