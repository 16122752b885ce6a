//! What a tenant asks of detection.

use serde_json::json;

use crate::house::House;

#[tokio::test(flavor = "multi_thread")]
async fn detection_is_asked_for_the_lanes_of_the_key_s_tenant_alone() {
    let house = House::build().await;
    let path = "/v1/detection/lanes?edge_id=edge-1&offset=7&limit=3";
    let asked = |tenant: &str| json!([{"tenant": tenant, "edge_id": "edge-1", "offset": 7, "limit": 3}]);
    for tenant in [&house.acme, &house.other] {
        assert_eq!(house.get(path, &tenant.auditor).await.expect(200).body, asked(tenant.id.as_str()));
    }
    let all = house.get("/v1/detection/lanes", &house.acme.analyst).await.expect(200).body;
    assert_eq!((&all[0]["edge_id"], &all[0]["offset"], &all[0]["limit"]), (&json!(null), &json!(0), &json!(50)));
    house.get("/v1/detection/lanes?limit=501", &house.acme.admin).await.refused(400, "invalid_query");
    // Nobody who answers is no lanes that are whole.
    house.get("/v1/detection/lanes?edge_id=gone", &house.acme.admin).await.refused(503, "detection_unavailable");
}
