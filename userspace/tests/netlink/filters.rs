//! The clsact qdisc and the filters on it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice::kernel::netlink::{Attached, Clsact, Detached, Direction, Error, Netlink};

use crate::support::{host, program, run, snapshot, spec, try_run, veth};

const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

async fn on_veth() -> (Netlink, u32) {
    veth("one", "other");
    let netlink = Netlink::connect().unwrap();
    let index = netlink.interface("one").await.unwrap().index;
    (netlink, index)
}

pub(crate) async fn clsact_is_created_once_and_removed() {
    let (netlink, index) = on_veth().await;
    assert_eq!(netlink.clsact(index).await.unwrap(), None);
    assert_eq!(netlink.ensure_clsact(index).await.unwrap(), Clsact::Created);
    assert_eq!(netlink.ensure_clsact(index).await.unwrap(), Clsact::Existed);
    assert!(run("tc qdisc show dev one").contains("qdisc clsact ffff:"));
    assert!(
        !run("tc qdisc show dev other").contains("clsact"),
        "only the requested interface has one"
    );
    netlink.remove_clsact(index).await.unwrap();
    netlink.remove_clsact(index).await.unwrap();
    assert!(!run("tc qdisc show dev one").contains("clsact"));
    let gone = netlink.ensure_clsact(4711).await.unwrap_err().to_string();
    assert!(
        gone.contains("interface number 4711") && gone.contains("the interface is gone"),
        "{gone}"
    );
}

pub(crate) async fn an_ingress_qdisc_is_used_for_ingress_only() {
    let (netlink, index) = on_veth().await;
    run("tc qdisc add dev one ingress");
    assert_eq!(netlink.ensure_clsact(index).await.unwrap(), Clsact::IngressOnly);
    let (first, id) = program();
    let ours = spec("sluice/edge/lb", 10);
    assert_eq!(
        netlink.put_filter(index, Direction::Ingress, &ours, first.as_fd()).await.unwrap(),
        Attached::Created
    );
    assert_eq!(netlink.filters(index, Direction::Ingress).await.unwrap()[0].program_id, Some(id));
    let error =
        netlink.put_filter(index, Direction::Egress, &ours, first.as_fd()).await.unwrap_err();
    assert!(
        matches!(error, Error::IngressOnly { .. })
            && error.to_string().contains("tc qdisc del dev one ingress"),
        "{error}"
    );
    // The kernel would list and remove the ingress filter here.
    assert_eq!(netlink.filters(index, Direction::Egress).await.unwrap(), []);
    assert_eq!(
        netlink.remove_filter(index, Direction::Egress, &ours).await.unwrap(),
        Detached::Absent
    );
    assert_eq!(
        netlink.remove_filter(index, Direction::Ingress, &ours).await.unwrap(),
        Detached::Removed
    );
    netlink.remove_clsact(index).await.unwrap();
    assert!(run("tc qdisc show dev one").contains("ingress"), "the foreign qdisc stays");
}

pub(crate) async fn a_filter_is_put_listed_replaced_and_removed() {
    let (netlink, index) = on_veth().await;
    let (first, first_id) = program();
    let (second, second_id) = program();
    assert_ne!(first_id, second_id);
    let ours = spec("sluice/edge/lb", 10);
    for direction in BOTH {
        assert_eq!(netlink.filters(index, direction).await.unwrap(), []);
        assert_eq!(netlink.remove_filter(index, direction, &ours).await.unwrap(), Detached::Absent);
    }
    netlink.put_filter(index, Direction::Egress, &ours, first.as_fd()).await.unwrap_err();
    netlink.ensure_clsact(index).await.unwrap();
    for direction in BOTH {
        for (program, id, expected) in
            [(&first, first_id, Attached::Created), (&second, second_id, Attached::Replaced)]
        {
            assert_eq!(
                netlink.put_filter(index, direction, &ours, program.as_fd()).await.unwrap(),
                expected
            );
            let filters = netlink.filters(index, direction).await.unwrap();
            assert_eq!(filters.len(), 1, "{filters:?}");
            assert_eq!((filters[0].priority, filters[0].handle, filters[0].protocol), (10, 1, 3));
            assert_eq!(
                (filters[0].kind.as_str(), filters[0].bpf_name.as_deref()),
                ("bpf", Some("sluice/edge/lb"))
            );
            assert_eq!(filters[0].program_id, Some(id));
            let shown = run(&format!("tc filter show dev one {direction}"));
            for word in ["protocol all", "pref 10", "handle 0x1", "sluice/edge/lb", "direct-action"]
            {
                assert!(shown.contains(word), "{word}: {shown}");
            }
        }
    }
    assert_eq!(
        netlink.remove_filter(index, Direction::Ingress, &ours).await.unwrap(),
        Detached::Removed
    );
    assert_eq!(netlink.filters(index, Direction::Ingress).await.unwrap(), []);
    assert_eq!(
        netlink.filters(index, Direction::Egress).await.unwrap().len(),
        1,
        "the egress filter is unchanged"
    );
}

pub(crate) async fn a_filter_is_replaced_without_a_gap() {
    let (netlink, index) = on_veth().await;
    netlink.ensure_clsact(index).await.unwrap();
    let programs = [program(), program()];
    let ids = [programs[0].1, programs[1].1];
    let ours = spec("sluice/edge/lb", 10);
    netlink.put_filter(index, Direction::Ingress, &ours, programs[0].0.as_fd()).await.unwrap();
    // A second thread in this namespace lists the filters continuously.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let watcher = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let netlink = Netlink::connect().unwrap();
            let mut seen = [0u32; 2];
            while !stopped.load(Ordering::Relaxed) {
                let filters = netlink.filters(index, Direction::Ingress).await.unwrap();
                assert_eq!(filters.len(), 1, "{filters:?}");
                let which = ids
                    .iter()
                    .position(|id| filters[0].program_id == Some(*id))
                    .expect("one of both programs");
                seen[which] += 1;
            }
            seen
        })
    });
    for round in 0..2000 {
        let program = &programs[(round + 1) % 2].0;
        assert_eq!(
            netlink.put_filter(index, Direction::Ingress, &ours, program.as_fd()).await.unwrap(),
            Attached::Replaced
        );
    }
    stop.store(true, Ordering::Relaxed);
    let seen = watcher.join().expect("there is always one filter");
    assert!(seen.iter().all(|times| *times > 0), "both programs were listed: {seen:?}");
}

pub(crate) async fn a_foreign_filter_at_the_same_priority_is_an_error_and_stays() {
    let (netlink, index) = on_veth().await;
    netlink.ensure_clsact(index).await.unwrap();
    let (program, id) = program();
    netlink
        .put_filter(index, Direction::Ingress, &spec("foreign", 10), program.as_fd())
        .await
        .unwrap();
    let error = netlink
        .put_filter(index, Direction::Ingress, &spec("ours", 10), program.as_fd())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Held { .. }), "{error}");
    let text = error.to_string();
    for word in
        ["foreign", "ours", "one ingress", "priority 10", "tc filter del dev one ingress pref 10"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(
        netlink.remove_filter(index, Direction::Ingress, &spec("ours", 10)).await.unwrap(),
        Detached::Absent
    );
    let filters = netlink.filters(index, Direction::Ingress).await.unwrap();
    assert_eq!(
        (filters.len(), filters[0].bpf_name.as_deref(), filters[0].program_id),
        (1, Some("foreign"), Some(id))
    );
}

/// Foreign filters at ingress and egress of `one`: BPF filters, and other kinds that the kernel
/// supports.
async fn foreign_filters(netlink: &Netlink, index: u32) {
    let (program, _) = program();
    for (direction, priority) in
        [(Direction::Ingress, 5), (Direction::Ingress, 20), (Direction::Egress, 10)]
    {
        netlink
            .put_filter(index, direction, &spec("foreign", priority), program.as_fd())
            .await
            .unwrap();
    }
    for kind in [
        "matchall action pass",
        "u32 match u32 0 0 action pass",
        "flower action drop",
        "basic action pass",
    ] {
        let _ = try_run(&format!("tc filter add dev one ingress pref 30 protocol ip {kind}"));
    }
}

pub(crate) async fn foreign_filters_are_never_removed() {
    let (netlink, index) = on_veth().await;
    netlink.ensure_clsact(index).await.unwrap();
    foreign_filters(&netlink, index).await;
    let before = snapshot();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let (first, _) = program();
    let (second, _) = program();
    let ours = spec("sluice/edge/lb", 10);
    for program in [&first, &second] {
        host.attach("one", Direction::Ingress, &ours, program.as_fd()).await.unwrap();
    }
    assert_ne!(snapshot(), before);
    host.attach("one", Direction::Egress, &ours, first.as_fd()).await.unwrap_err();
    assert_eq!(host.detach_except(Direction::Ingress, &ours, &[]).await.unwrap(), ["one"]);
    assert!(host.detach_except(Direction::Ingress, &ours, &[]).await.unwrap().is_empty());
    assert_eq!(snapshot(), before);
    assert_eq!(host.journal().changes(), []);

    host.attach("one", Direction::Ingress, &ours, first.as_fd()).await.unwrap();
    let report = host.undo_all().await.unwrap();
    assert!(report.failed.is_empty() && report.left.is_empty(), "{report}");
    assert_eq!(snapshot(), before);
}
