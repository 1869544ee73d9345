//! `/memberlist`: who is there, and what is known.

use std::fmt::Write as _;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{Html, IntoResponse as _, Response},
};
use dataflow::cluster::Role;
use storage::clock::Clock as _;

use super::{Liveness, Store};
use crate::{
    http::{accepts, escape},
    logging,
};

/// Answers it; without gossip there is nothing to show.
pub(crate) async fn memberlist(State(store): State<Option<Store>>, headers: HeaderMap) -> Response {
    let Some(store) = store else { return (StatusCode::OK, "This process does not use memberlist.\n").into_response() };
    let (members, rings) = (store.members(), store.ring_names());
    let now = logging::timestamp(storage::clock::SystemClock.now());
    if accepts(&headers, "application/json") {
        let members = members.iter().map(|member| {
            serde_json::json!({"name": member.name, "address": member.address.to_string(), "state": member.liveness.as_str(), "candidate": member.candidate})
        });
        return Json(serde_json::json!({"now": now, "members": members.collect::<Vec<_>>(), "keys": rings})).into_response();
    }
    let (mut rows, mut keys) = (String::new(), String::new());
    for member in &members {
        let role = match member.candidate.as_ref().map(|candidate| candidate.role) {
            Some(Role::Ingester) => "ingester",
            Some(Role::Generator) => "generator",
            None => "",
        };
        let (name, address) = (escape(&member.name), member.address);
        _ = write!(rows, "<tr><td>{name}</td><td>{address}</td><td>{}</td><td>{role}</td></tr>", member.liveness.as_str());
    }
    for (ring, instances) in &rings {
        _ = write!(keys, "<tr><td>{}</td><td>{instances}</td></tr>", escape(ring));
    }
    let alive = members.iter().filter(|member| member.liveness == Liveness::Alive).count();
    Html(format!(
        "<!doctype html><meta charset=utf-8><title>Memberlist</title><h1>Memberlist cluster status</h1><p>{now}: {alive} members are alive.</p>\
         <h2>Members</h2><table border=1><tr><th>name</th><th>address</th><th>state</th><th>dataflow</th></tr>{rows}</table>\
         <h2>Rings</h2><table border=1><tr><th>key</th><th>instances</th></tr>{keys}</table>"
    ))
    .into_response()
}
