//! The shop that the synthetic traces come from: its services, what they do, and whom they call.

/// How a request reaches an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP: method and route.
    Http(&'static str, &'static str),
    /// gRPC: service and method.
    Grpc(&'static str, &'static str),
}

/// Something that a service can be asked to do.
#[derive(Debug)]
pub(super) struct Operation {
    /// Name of the server's span, and of the client's.
    pub(super) name: &'static str,
    pub(super) protocol: Protocol,
}

/// A statement that a service sends to a database.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) system: &'static str,
    pub(super) database: &'static str,
    pub(super) operation: &'static str,
    pub(super) collection: &'static str,
    /// Name of the span.
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

/// A topic, the names of its producer's and consumer's spans, and the service that consumes it.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: &'static str,
    pub(super) publish: &'static str,
    pub(super) process: &'static str,
    pub(super) consumer: u8,
}

/// A service. Numbers point into [`SERVICES`] and [`TOPICS`].
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) namespace: &'static str,
    pub(super) language: &'static str,
    pub(super) version: &'static str,
    pub(super) pods: u8,
    pub(super) operations: &'static [Operation],
    pub(super) internal: &'static [&'static str],
    pub(super) statements: &'static [Statement],
    /// Services that it calls, most frequent first.
    pub(super) calls: &'static [u8],
    pub(super) topics: &'static [u8],
}

const fn http(name: &'static str, method: &'static str, route: &'static str) -> Operation {
    Operation { name, protocol: Protocol::Http(method, route) }
}

const fn grpc(name: &'static str, service: &'static str, method: &'static str) -> Operation {
    Operation { name, protocol: Protocol::Grpc(service, method) }
}

const fn sql(
    database: &'static str,
    operation: &'static str,
    collection: &'static str,
    name: &'static str,
    text: &'static str,
) -> Statement {
    Statement { system: "postgresql", database, operation, collection, name, text }
}

const fn redis(operation: &'static str, text: &'static str) -> Statement {
    Statement { system: "redis", database: "0", operation, collection: "", name: operation, text }
}

pub(super) const TOPICS: &[Topic] = &[
    Topic { name: "orders", publish: "publish orders", process: "process orders", consumer: 10 },
    Topic { name: "shipments", publish: "publish shipments", process: "process shipments", consumer: 11 },
    Topic { name: "clicks", publish: "publish clicks", process: "process clicks", consumer: 12 },
];

/// The service whose traces begin without a request from outside.
pub(super) const SCHEDULER: u8 = 13;

pub(super) const SERVICES: &[Service] = &[
    Service {
        name: "gateway",
        namespace: "edge",
        language: "go",
        version: "4.18.2",
        pods: 4,
        operations: &[
            http("GET /api/products/{id}", "GET", "/api/products/{id}"),
            http("GET /api/products", "GET", "/api/products"),
            http("GET /api/cart", "GET", "/api/cart"),
            http("POST /api/cart/items", "POST", "/api/cart/items"),
            http("GET /api/recommendations", "GET", "/api/recommendations"),
            http("POST /api/login", "POST", "/api/login"),
            http("POST /api/checkout", "POST", "/api/checkout"),
            http("GET /api/orders/{id}", "GET", "/api/orders/{id}"),
            http("GET /api/profile", "GET", "/api/profile"),
            http("DELETE /api/cart/items/{id}", "DELETE", "/api/cart/items/{id}"),
            http("GET /api/search", "GET", "/api/search"),
            http("PUT /api/profile", "PUT", "/api/profile"),
        ],
        internal: &["route", "authorize", "rate limit", "render response", "parse body"],
        statements: &[redis("GET", "GET session:?"), redis("INCR", "INCR quota:?")],
        calls: &[1, 2, 3, 7, 8, 4],
        topics: &[2],
    },
    Service {
        name: "catalog",
        namespace: "shop",
        language: "java",
        version: "2.31.0",
        pods: 4,
        operations: &[
            grpc("shop.Catalog/GetProduct", "shop.Catalog", "GetProduct"),
            grpc("shop.Catalog/ListProducts", "shop.Catalog", "ListProducts"),
            grpc("shop.Catalog/SearchProducts", "shop.Catalog", "SearchProducts"),
            grpc("shop.Catalog/GetCategory", "shop.Catalog", "GetCategory"),
        ],
        internal: &["CatalogService.load", "CatalogMapper.toDto", "RankingModel.score", "CategoryTree.resolve"],
        statements: &[
            sql(
                "catalog",
                "SELECT",
                "products",
                "SELECT products",
                "SELECT id, sku, title, price_cents, currency, stock FROM products WHERE id = $1",
            ),
            redis("MGET", "MGET product:? product:? product:?"),
            sql(
                "catalog",
                "SELECT",
                "categories",
                "SELECT categories",
                "SELECT c.id, c.name, c.parent_id FROM categories c WHERE c.path @> $1",
            ),
            Statement {
                system: "elasticsearch",
                database: "products",
                operation: "search",
                collection: "products-v7",
                name: "search products-v7",
                text: "{\"query\":{\"multi_match\":{\"query\":\"?\",\"fields\":[\"title^3\",\"body\"]}},\"size\":24}",
            },
        ],
        calls: &[5, 9],
        topics: &[],
    },
    Service {
        name: "cart",
        namespace: "shop",
        language: "dotnet",
        version: "1.9.4",
        pods: 3,
        operations: &[
            grpc("shop.Cart/GetCart", "shop.Cart", "GetCart"),
            grpc("shop.Cart/AddItem", "shop.Cart", "AddItem"),
            grpc("shop.Cart/EmptyCart", "shop.Cart", "EmptyCart"),
        ],
        internal: &["CartStore.Load", "CartStore.Save", "Promotion.Apply"],
        statements: &[redis("HGETALL", "HGETALL cart:?"), redis("HSET", "HSET cart:? ? ?"), redis("EXPIRE", "EXPIRE cart:? 86400")],
        calls: &[5, 1],
        topics: &[],
    },
    Service {
        name: "checkout",
        namespace: "shop",
        language: "go",
        version: "3.2.1",
        pods: 3,
        operations: &[
            grpc("shop.Checkout/PlaceOrder", "shop.Checkout", "PlaceOrder"),
            grpc("shop.Checkout/Preview", "shop.Checkout", "Preview"),
            grpc("shop.Checkout/GetOrder", "shop.Checkout", "GetOrder"),
        ],
        internal: &["validate order", "compute totals", "reserve stock", "build receipt"],
        statements: &[
            sql(
                "orders",
                "INSERT",
                "orders",
                "INSERT orders",
                "INSERT INTO orders (id, user_id, total_cents, currency, state) VALUES ($1, $2, $3, $4, $5)",
            ),
            sql("orders", "SELECT", "orders", "SELECT orders", "SELECT * FROM orders WHERE id = $1 FOR UPDATE"),
            sql("orders", "UPDATE", "orders", "UPDATE orders", "UPDATE orders SET state = $1, updated_at = now() WHERE id = $2"),
        ],
        calls: &[6, 2, 4, 9, 5],
        topics: &[0],
    },
    Service {
        name: "shipping",
        namespace: "logistics",
        language: "rust",
        version: "0.14.0",
        pods: 2,
        operations: &[
            grpc("logistics.Shipping/GetQuote", "logistics.Shipping", "GetQuote"),
            grpc("logistics.Shipping/ShipOrder", "logistics.Shipping", "ShipOrder"),
        ],
        internal: &["quote", "pack parcels", "choose carrier"],
        statements: &[sql(
            "logistics",
            "SELECT",
            "tariffs",
            "SELECT tariffs",
            "SELECT carrier, zone, price_cents FROM tariffs WHERE zone = $1 AND grams >= $2 ORDER BY price_cents LIMIT 5",
        )],
        calls: &[9],
        topics: &[1],
    },
    Service {
        name: "pricing",
        namespace: "shop",
        language: "java",
        version: "5.0.7",
        pods: 3,
        operations: &[
            grpc("shop.Pricing/GetPrice", "shop.Pricing", "GetPrice"),
            grpc("shop.Pricing/Convert", "shop.Pricing", "Convert"),
            grpc("shop.Pricing/GetDiscounts", "shop.Pricing", "GetDiscounts"),
        ],
        internal: &["PriceRules.evaluate", "CurrencyTable.lookup", "DiscountEngine.match"],
        statements: &[
            redis("GET", "GET rate:?:?"),
            sql(
                "pricing",
                "SELECT",
                "price_rules",
                "SELECT price_rules",
                "SELECT rule_id, expression, priority FROM price_rules WHERE sku = ANY($1) AND valid_until > now()",
            ),
        ],
        calls: &[],
        topics: &[],
    },
    Service {
        name: "payment",
        namespace: "finance",
        language: "nodejs",
        version: "7.4.0",
        pods: 2,
        operations: &[
            http("POST /v2/charges", "POST", "/v2/charges"),
            http("POST /v2/refunds", "POST", "/v2/refunds"),
            http("GET /v2/charges/{id}", "GET", "/v2/charges/{id}"),
        ],
        internal: &["tokenize card", "fraud score", "middleware - express.json", "request handler - /v2/charges"],
        statements: &[
            sql(
                "payments",
                "INSERT",
                "charges",
                "INSERT charges",
                "INSERT INTO charges (id, order_id, amount_cents, currency, token) VALUES ($1, $2, $3, $4, $5) RETURNING id",
            ),
            sql("payments", "SELECT", "charges", "SELECT charges", "SELECT id, state FROM charges WHERE order_id = $1"),
        ],
        calls: &[7],
        topics: &[],
    },
    Service {
        name: "identity",
        namespace: "edge",
        language: "java",
        version: "11.2.0",
        pods: 2,
        operations: &[
            http("POST /oauth/token", "POST", "/oauth/token"),
            http("GET /users/{id}", "GET", "/users/{id}"),
            http("PUT /users/{id}", "PUT", "/users/{id}"),
            http("POST /oauth/introspect", "POST", "/oauth/introspect"),
        ],
        internal: &["TokenService.sign", "PasswordEncoder.matches", "UserController.get"],
        statements: &[
            sql("identity", "SELECT", "users", "SELECT users", "SELECT id, email, password_hash, locked_until FROM users WHERE email = $1"),
            redis("SETEX", "SETEX token:? 3600 ?"),
        ],
        calls: &[],
        topics: &[],
    },
    Service {
        name: "recommendation",
        namespace: "ml",
        language: "python",
        version: "0.44.3",
        pods: 3,
        operations: &[
            grpc("ml.Recommendation/List", "ml.Recommendation", "List"),
            grpc("ml.Recommendation/Similar", "ml.Recommendation", "Similar"),
        ],
        internal: &["feature lookup", "model.predict", "re-rank", "filter seen"],
        statements: &[
            redis("MGET", "MGET feat:? feat:? feat:? feat:?"),
            Statement {
                system: "mongodb",
                database: "features",
                operation: "find",
                collection: "embeddings",
                name: "find embeddings",
                text: "{\"find\":\"embeddings\",\"filter\":{\"user\":\"?\"},\"limit\":50}",
            },
        ],
        calls: &[1],
        topics: &[],
    },
    Service {
        name: "inventory",
        namespace: "logistics",
        language: "go",
        version: "2.0.9",
        pods: 3,
        operations: &[
            grpc("logistics.Inventory/Check", "logistics.Inventory", "Check"),
            grpc("logistics.Inventory/Reserve", "logistics.Inventory", "Reserve"),
            grpc("logistics.Inventory/Release", "logistics.Inventory", "Release"),
        ],
        internal: &["lock shelf", "nearest warehouse"],
        statements: &[
            sql(
                "inventory",
                "SELECT",
                "stock",
                "SELECT stock",
                "SELECT warehouse, available FROM stock WHERE sku = $1 AND available >= $2",
            ),
            sql(
                "inventory",
                "UPDATE",
                "stock",
                "UPDATE stock",
                "UPDATE stock SET available = available - $1 WHERE sku = $2 AND warehouse = $3",
            ),
        ],
        calls: &[],
        topics: &[],
    },
    Service {
        name: "notification",
        namespace: "messaging",
        language: "python",
        version: "1.3.8",
        pods: 2,
        operations: &[http("POST /internal/mail", "POST", "/internal/mail")],
        internal: &["render template", "smtp send", "push send"],
        statements: &[sql(
            "notification",
            "SELECT",
            "templates",
            "SELECT templates",
            "SELECT body FROM templates WHERE name = %s AND locale = %s",
        )],
        calls: &[7],
        topics: &[],
    },
    Service {
        name: "fulfilment",
        namespace: "logistics",
        language: "java",
        version: "6.6.1",
        pods: 2,
        operations: &[grpc("logistics.Fulfilment/Track", "logistics.Fulfilment", "Track")],
        internal: &["LabelPrinter.print", "RoutePlanner.plan"],
        statements: &[sql(
            "logistics",
            "INSERT",
            "labels",
            "INSERT labels",
            "INSERT INTO labels (shipment_id, carrier, tracking_code) VALUES ($1, $2, $3)",
        )],
        calls: &[4, 9],
        topics: &[],
    },
    Service {
        name: "analytics",
        namespace: "ml",
        language: "python",
        version: "0.9.12",
        pods: 2,
        operations: &[http("POST /events", "POST", "/events")],
        internal: &["sessionize", "enrich", "anonymize"],
        statements: &[Statement {
            system: "clickhouse",
            database: "events",
            operation: "INSERT",
            collection: "clicks",
            name: "INSERT clicks",
            text: "INSERT INTO clicks FORMAT RowBinary",
        }],
        calls: &[],
        topics: &[],
    },
    Service {
        name: "scheduler",
        namespace: "platform",
        language: "go",
        version: "1.1.0",
        pods: 1,
        operations: &[grpc("platform.Scheduler/Trigger", "platform.Scheduler", "Trigger")],
        internal: &["job: refresh prices", "job: expire carts", "job: reconcile payments", "acquire lease"],
        statements: &[sql(
            "scheduler",
            "SELECT",
            "jobs",
            "SELECT jobs",
            "SELECT id, name, next_run FROM jobs WHERE next_run <= now() FOR UPDATE SKIP LOCKED LIMIT 10",
        )],
        calls: &[5, 2, 6],
        topics: &[],
    },
];

pub(super) const USER_AGENTS: &[&str] = &[
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
    "ShopApp/8.21 (ios; build 4411)",
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "curl/8.14.1",
];

pub(super) const EXCEPTIONS: &[(&str, &str)] = &[
    ("java.net.SocketTimeoutException", "Read timed out after 2000 ms"),
    ("redis.exceptions.ConnectionError", "Connection closed by server"),
    ("StatusRuntimeException", "UNAVAILABLE: upstream connect error or disconnect/reset before headers"),
    ("org.postgresql.util.PSQLException", "ERROR: deadlock detected"),
    ("ValueError", "quantity must be positive"),
    ("CardDeclined", "issuer refused the charge: insufficient_funds"),
];

pub(super) const FRAMES: &[&str] = &[
    "shop.runtime.Dispatcher.dispatch(Dispatcher.java:214)",
    "shop.runtime.Filter.apply(Filter.java:71)",
    "shop.store.Session.execute(Session.java:402)",
    "shop.store.Pool.borrow(Pool.java:133)",
    "shop.service.Handler.handle(Handler.java:58)",
    "shop.service.Retry.call(Retry.java:91)",
    "shop.net.Channel.write(Channel.java:310)",
];

pub(super) const COUNTRIES: &[&str] = &["DE", "US", "FR", "GB", "JP", "BR", "IN", "PL", "SE", "AU"];

pub(super) const CURRENCIES: &[&str] = &["EUR", "USD", "GBP", "JPY"];
