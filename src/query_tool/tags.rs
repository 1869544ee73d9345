//! `rubato query tags` and `rubato query tag-values`.

use query::proto::{SearchTagValuesV2Response, SearchTagsV2Response};

use super::{
    Range,
    server::{self, escaped},
};
use crate::output::{count, print, printable, table, text};

/// Lists names.
#[derive(Debug, clap::Args)]
pub(super) struct NamesCommand {
    /// Only those of this scope: resource, span, event, link, instrumentation or intrinsic
    #[arg(long)]
    scope: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Lists values.
#[derive(Debug, clap::Args)]
pub(super) struct ValuesCommand {
    /// The attribute as TraceQL names it, such as resource.service.name, span.http.method, .foo or status
    tag: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Only of spans that satisfy this filter, such as '{ resource.service.name = "shop" }'
    #[arg(long = "query", short, default_value = "")]
    query: String,
    /// Most entries; of a scope, for names. By default as many as the server gives
    #[arg(long, short = 'n')]
    limit: Option<u32>,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    server: server::Arguments,
}

impl Common {
    fn parameters(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let mut parameters = self.range.parameters()?;
        parameters.extend([("q", self.query.clone()), ("limit", self.limit.map_or_else(String::new, |limit| limit.to_string()))]);
        Ok(parameters)
    }
}

pub(super) async fn names(command: NamesCommand) -> anyhow::Result<()> {
    let mut parameters = command.common.parameters()?;
    parameters.push(("scope", command.scope.unwrap_or_default()));
    let (path, server) = ("/api/v2/search/tags", &command.common.server);
    if server.json {
        return server.print_json(path, &parameters).await;
    }
    let answer: SearchTagsV2Response = server.message(path, &parameters).await?;
    let mut rows = table(&["SCOPE", "NAME"]);
    let mut total = 0;
    for scope in &answer.scopes {
        total += scope.tags.len() as u64;
        scope.tags.iter().for_each(|tag| _ = rows.add_row([printable(&scope.name), printable(tag)]));
    }
    print(&format!("{}\n{} names\n", text(&rows), count(total)));
    Ok(())
}

pub(super) async fn values(command: ValuesCommand) -> anyhow::Result<()> {
    let parameters = command.common.parameters()?;
    let (path, server) = (format!("/api/v2/search/tag/{}/values", escaped(&command.tag)), &command.common.server);
    if server.json {
        return server.print_json(&path, &parameters).await;
    }
    let answer: SearchTagValuesV2Response = server.message(&path, &parameters).await?;
    let mut rows = table(&["TYPE", "VALUE"]);
    answer.tag_values.iter().for_each(|value| _ = rows.add_row([printable(&value.r#type), printable(&value.value)]));
    print(&format!("{}\n{} values\n", text(&rows), count(answer.tag_values.len() as u64)));
    Ok(())
}
