//! The address that other processes reach this one at, if the configuration doesn't say.
//!
//! Linux tells the addresses of the machine (`/proc/net/fib_trie`) and the networks of its interfaces (`/proc/net/route`); an address belongs to the interface
//! whose network it lies in. Addresses of IPv6 come with their interfaces (`/proc/net/if_inet6`); they are taken where there is none of IPv4. Other systems
//! tell nothing: there the configuration has to.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The first address of the first of these interfaces that has one, else any address of the machine; never one of the loopback.
pub(crate) fn of_interfaces(names: &[String]) -> Option<IpAddr> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    choose(&read("/proc/net/fib_trie"), &read("/proc/net/route"), &read("/proc/net/if_inet6"), names)
}

fn choose(trie: &str, routes: &str, inet6: &str, names: &[String]) -> Option<IpAddr> {
    let (addresses, sixth) = (local_addresses(trie), addresses_of_ipv6(inet6));
    let networks = networks(routes);
    let of = |name: &String| {
        let here = networks.iter().filter(|(interface, ..)| interface == name);
        here.flat_map(|(_, network, mask)| addresses.iter().filter(move |address| address.to_bits() & mask == *network)).next().copied()
    };
    let of_sixth = |name: &String| sixth.iter().find(|(interface, _)| interface == name).map(|(_, address)| *address);
    let named = names.iter().find_map(of).map(IpAddr::V4).or_else(|| names.iter().find_map(of_sixth).map(IpAddr::V6));
    let any = || addresses.first().copied().map(IpAddr::V4).or_else(|| sixth.first().map(|(_, address)| IpAddr::V6(*address)));
    named.or_else(any)
}

/// Address, index, length of the prefix, scope, flags and name of the interface, in hexadecimal; the scope 0 is global.
fn addresses_of_ipv6(table: &str) -> Vec<(String, Ipv6Addr)> {
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [address, _, _, "00", _, name] = columns.as_slice() else { return None };
        let address = Ipv6Addr::from_bits(u128::from_str_radix(address, 16).ok()?);
        Some(((*name).to_owned(), address)).filter(|_| !address.is_loopback())
    };
    table.lines().filter_map(row).collect()
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

    const SIXTH: &str = "00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000000000000000001 02 40 20 80     eth0
fd000000000000000000000000000001 02 40 00 80     eth0
20010db8000000000000000000000006 03 40 00 80     eth6
";

    #[test]
    fn the_first_interface_that_exists_is_taken() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let address = |text: &str| Some(text.parse::<IpAddr>().expect("an address"));
        let of = |interfaces: &[&str]| choose(TRIE, ROUTES, SIXTH, &names(interfaces));
        assert_eq!(of(&["eth0", "en0"]), address("10.1.2.3"));
        assert_eq!(of(&["eth9", "en0"]), address("192.168.7.9"));
        assert_eq!(of(&["eth9"]), address("10.1.2.3"), "any of the machine's");
        assert_eq!(of(&["eth6"]), address("2001:db8::6"), "an interface without IPv4");
        assert_eq!(choose("", "", SIXTH, &names(&["eth0"])), address("fd00::1"), "a machine without IPv4");
        assert_eq!(choose("", "", "", &names(&["eth0"])), None);
    }
}
