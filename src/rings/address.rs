//! The address that other processes reach this one at, if the configuration doesn't say.
//!
//! Linux tells the addresses of the machine (`/proc/net/fib_trie`) and the networks of its interfaces (`/proc/net/route`); an address belongs to the interface
//! whose network it lies in.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

/// The first address of the first of these interfaces that has one, else any address of the machine; never one of the loopback.
pub(crate) fn of_interfaces(names: &[String]) -> Option<IpAddr> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    choose(&read("/proc/net/fib_trie"), &read("/proc/net/route"), names).map(IpAddr::V4)
}

fn choose(trie: &str, routes: &str, names: &[String]) -> Option<Ipv4Addr> {
    let addresses = local_addresses(trie);
    let networks = networks(routes);
    let of = |name: &String| {
        let here = networks.iter().filter(|(interface, ..)| interface == name);
        here.flat_map(|(_, network, mask)| addresses.iter().filter(move |address| address.to_bits() & mask == *network)).next().copied()
    };
    names.iter().find_map(of).or_else(|| addresses.first().copied())
}

/// A line `/32 host LOCAL` follows each address of the machine.
fn local_addresses(trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in trie.lines() {
        if let Some(address) = line.trim_start().strip_prefix("|-- ") {
            last = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL") {
            found.extend(last.filter(|address| !address.is_loopback() && !found.contains(address)));
        }
    }
    found
}

/// The networks that interfaces are attached to, without default routes: name, network, mask. The kernel prints them in the byte order of the machine.
fn networks(routes: &str) -> Vec<(String, u32, u32)> {
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number = |column: usize| u32::from_str_radix(columns.get(column)?, 16).ok().map(u32::to_be);
        let (network, mask) = (number(1)?, number(7)?);
        (mask != 0).then(|| ((*columns.first().unwrap_or(&"")).to_owned(), network, mask))
    };
    routes.lines().skip(1).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.1.0.0/16 2 0 2
        |-- 10.1.0.0
           /16 link UNICAST
        |-- 10.1.2.3
           /32 host LOCAL
        |-- 10.1.255.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
     +-- 192.168.7.0/24 2 0 2
        |-- 192.168.7.9
           /32 host LOCAL
";
    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t0100010A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
en0\t0007A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
";

    #[test]
    fn the_first_interface_that_exists_is_taken() {
        let of = |names: &[&str]| choose(TRIE, ROUTES, &names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["eth0", "en0"]), Some(Ipv4Addr::new(10, 1, 2, 3)));
        assert_eq!(of(&["eth9", "en0"]), Some(Ipv4Addr::new(192, 168, 7, 9)));
        assert_eq!(of(&["eth9"]), Some(Ipv4Addr::new(10, 1, 2, 3)), "any of the machine's");
        assert_eq!(choose("", "", &["eth0".to_owned()]), None);
    }
}
