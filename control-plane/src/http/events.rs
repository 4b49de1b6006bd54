//! GET /api/v1/events: the histories of the three roles, merged by time.
//!
//! Each role numbers its own events; a cursor names the last one seen of each, so that nothing is told twice or left out
//! while others are being written.

use axum::Json;
use axum::extract::State;
use protocol::id::NodeId;

use super::ApiState;
use super::extract::{InQuery, find_node, limit};
use super::model::{self, EventQuery, Events};
use crate::error::{ApiError, Problem};
use crate::store::{Event, EventFilter};

/// List events
///
/// Over all nodes: the newest, or what happened after the `next` of an earlier call.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "history",
    params(EventQuery),
    responses(
        (status = 200, description = "In the order of their times", body = Events),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_events(
    State(state): State<ApiState>,
    InQuery(query): InQuery<EventQuery>,
) -> Result<Json<Events>, ApiError> {
    let of = match &query.node {
        Some(wanted) => {
            let node = find_node(&**state.app.tenant.store(), wanted).await?;
            Of { node_id: node.node_id, name: Some(node.name) }
        }
        None => Of::default(),
    };
    read(&state, query.after.as_deref(), limit(query.limit)?, of).await.map(Json)
}

/// About whom: all if both are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Of {
    pub(crate) node_id: Option<NodeId>,
    pub(crate) name: Option<String>,
}

/// Reads one page.
pub(crate) async fn read(state: &ApiState, after: Option<&str>, limit: u32, of: Of) -> Result<Events, ApiError> {
    let cursor = after.map(parse_cursor).transpose()?;
    let filter = |role: usize| EventFilter {
        node_id: of.node_id,
        name: of.name.clone(),
        after_id: cursor.and_then(|cursor| cursor.get(role).copied()),
        limit,
    };
    let app = &state.app;
    let histories = [
        app.registrar.store().events(&filter(0)).await?,
        app.verifier.store().events(&filter(1)).await?,
        app.tenant.store().events(&filter(2)).await?,
    ];
    Ok(merge(histories, cursor, limit as usize))
}

/// Merges the histories of registrar, verifier and tenant, each ascending by its own numbers.
///
/// After a cursor it gives the first `limit`, without one the last.
fn merge(histories: [Vec<Event>; 3], cursor: Option<[i64; 3]>, limit: usize) -> Events {
    let mut next = cursor.unwrap_or_default();
    if cursor.is_none() {
        for (last, history) in next.iter_mut().zip(&histories) {
            *last = history.last().map_or(0, |event| event.id);
        }
    }
    let mut heads = histories.map(|history| history.into_iter().peekable());
    let mut merged = Vec::new();
    // The order within a role is its own, even if its clock was set back in between.
    while cursor.is_none() || merged.len() < limit {
        let earliest = (0..heads.len())
            .filter_map(|role| heads.get_mut(role)?.peek().map(|event| (event.at_ms, role)))
            .min()
            .map(|(_, role)| role);
        let Some(role) = earliest else { break };
        let Some(event) = heads.get_mut(role).and_then(Iterator::next) else { break };
        if cursor.is_some()
            && let Some(last) = next.get_mut(role)
        {
            *last = event.id;
        }
        merged.push(event);
    }
    let surplus = merged.len().saturating_sub(limit);
    let events = merged
        .into_iter()
        .skip(surplus)
        .map(|event| model::Event {
            id: format!("{}-{}", event.role, event.id),
            at_ms: event.at_ms,
            role: event.role,
            node_id: event.node_id.map(|id| id.to_string()),
            name: event.name,
            kind: event.kind,
            detail: event.detail,
        })
        .collect();
    let [registrar, verifier, tenant] = next;
    Events { events, next: format!("{registrar}.{verifier}.{tenant}") }
}

fn parse_cursor(text: &str) -> Result<[i64; 3], ApiError> {
    let parts: Vec<i64> = text.split('.').take(4).map_while(|part| part.parse().ok()).collect();
    <[i64; 3]>::try_from(parts)
        .ok()
        .filter(|parts| text.split('.').count() == 3 && parts.iter().all(|part| *part >= 0))
        .ok_or_else(|| ApiError::bad_request("after: give the `next` of an earlier call."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(role: &str, id: i64, at_ms: i64) -> Event {
        Event { id, at_ms, role: role.into(), node_id: None, name: None, kind: "k".into(), detail: String::new() }
    }

    fn histories() -> [Vec<Event>; 3] {
        [
            vec![event("registrar", 1, 10), event("registrar", 2, 40)],
            vec![event("verifier", 7, 20)],
            vec![event("tenant", 3, 30)],
        ]
    }

    fn ids(events: &Events) -> Vec<&str> {
        events.events.iter().map(|event| event.id.as_str()).collect()
    }

    #[test]
    fn events_come_in_the_order_of_time_and_the_cursor_is_past_all_of_them() {
        let events = merge(histories(), None, 10);
        assert_eq!(ids(&events), ["registrar-1", "verifier-7", "tenant-3", "registrar-2"]);
        assert_eq!(events.next, "2.7.3");
        assert_eq!(ids(&merge(histories(), None, 2)), ["tenant-3", "registrar-2"]);
    }

    #[test]
    fn a_page_after_a_cursor_leaves_nothing_out_for_the_next() {
        let first = merge(histories(), Some([0, 0, 0]), 2);
        assert_eq!(ids(&first), ["registrar-1", "verifier-7"]);
        assert_eq!(first.next, "1.7.0");
        assert_eq!(parse_cursor(&first.next).unwrap(), [1, 7, 0]);
    }

    #[test]
    fn a_cursor_of_anything_else_is_refused() {
        for text in ["", "1", "1.2", "1.2.3.4", "a.b.c", "1.2.", "-1.2.3", "1.2.99999999999999999999"] {
            assert!(parse_cursor(text).is_err(), "{text}");
        }
    }
}
