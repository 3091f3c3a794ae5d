"""Of every limit in `[limits]`, the test that goes beyond it. `test_sizes.py` sees to it that none is missing."""

from __future__ import annotations

from collections.abc import Mapping

_UPLOADS = "services/media/test_uploads.py"
_REQUESTS = "asgi/test_requests.py"
_SERVER = "asgi/test_server.py"
_SOCKETS = "realtime/test_ws_limits.py"
_RATES = "integration/test_quotas.py"
_QUOTAS = "test_quotas.py"
_ABUSE = "realtime/test_ws_abuse.py"
_ROOMS = "conversations/test_rooms.py"
_CHAT = "services/chat/test_rpcs.py"
_RULES = "conversations/test_room_rules.py"
_STREAMS = "services/stream/test_stream_service.py"
_MESSAGES = "services/messaging/test_messages.py"

LIMITS: Mapping[str, str] = {
    "message_body_bytes": "integration/test_sizes.py::test_sizes_that_matter_most",
    "grpc_message_bytes": "rpc/test_calls.py::test_oversize_messages_both_ways",
    "http_body_bytes": "gateway/test_server.py::test_a_body_over_the_limit_is_refused",
    "grpc_connections": "rpc/test_targets.py::test_connections_beyond_the_limit_are_closed",
    "grpc_queued_bytes": "rpc/test_attacks.py::test_windows_that_stay_shut_bound_memory",
    "grpc_inflated_bytes": "rpc/test_compression.py::test_what_calls_hold_inflated_is_limited_over_a_connection",
    "http_connections": f"{_SERVER}::test_connections_have_a_limit",
    "http_line_bytes": f"{_REQUESTS}::test_the_request_line_has_a_limit",
    "http_headers": f"{_REQUESTS}::test_the_number_of_headers_has_a_limit",
    "header_list_bytes": f"{_REQUESTS}::test_the_head_has_a_limit",
    "http_head_s": f"{_SERVER}::test_headers_that_take_too_long_are_408",
    "http_idle_s": f"{_SERVER}::test_idle_connections_are_closed",
    "http_deadline_s": "gateway/test_server.py::test_a_slow_service_is_504",
    "http_body_gap_s": f"{_SERVER}::test_a_body_that_goes_wrong_is_answered_by_the_server",
    "http_send_gap_s": f"{_SERVER}::test_a_reader_that_stops_is_cut_off",
    "grpc_unfinished_s": "rpc/test_patience.py::test_what_has_begun_must_go_on",
    "grpc_untaken_s": "rpc/test_patience.py::test_a_window_kept_shut_ends_its_stream",
    "streams_per_connection": "http2/test_connection_rules.py::test_too_many_streams_are_refused",
    "websocket_frame_bytes": f"{_SOCKETS}::test_a_frame_over_the_limit_closes_with_1009",
    "socket_buffer_bytes": f"{_SOCKETS}::test_a_slow_reader_is_closed_with_1013_and_nobody_else_suffers",
    "user_sockets": f"{_SOCKETS}::test_the_21st_socket_of_a_user_is_refused",
    "socket_operations_per_min": f"{_SOCKETS}::test_operations_over_the_budget_are_refused_until_it_refills",
    "socket_chatter_per_min": f"{_ABUSE}::test_a_flood_of_control_frames_ends_the_socket",
    "socket_fragments": f"{_ABUSE}::test_a_message_in_crumbs_is_refused",
    "handshakes": f"{_ABUSE}::test_slow_handshakes_do_not_keep_others_out",
    "address_connections": "realtime/test_ws_addresses.py::test_connections_of_an_address_are_limited",
    "address_handshakes_per_min": f"{_QUOTAS}::test_sockets_opened_from_an_address_are_limited",
    "user_refused_joins_per_min": f"{_ABUSE}::test_a_walk_over_many_topics_is_slowed_down",
    "topic_presence_per_s": "realtime/test_hub.py::test_presence_costs_a_topic_a_bounded_number_of_deliveries",
    "typing_interval_s": "realtime/test_slow_readers.py::test_typing_is_said_at_most_so_often",
    "user_messages_per_min": "services/messaging/test_rpcs.py::test_the_message_rate_is_limited",
    "conversation_messages_per_min": f"{_RATES}::test_a_conversation_over_its_limit_refuses_messages",
    "user_calls_per_min": f"{_QUOTAS}::test_a_person_is_limited_wherever_they_call_from",
    "address_calls_per_min": f"{_QUOTAS}::test_an_address_is_limited_whoever_calls",
    "connection_calls_per_min": f"{_QUOTAS}::test_a_connection_is_limited",
    "auth_attempts_per_hour": "services/auth/test_service.py::test_failed_logins_of_an_address_are_limited",
    "auth_account_attempts_per_hour": "services/auth/test_service.py::test_a_stranger_does_not_lock_an_owner_out",
    "account_sessions": "services/auth/test_devices.py::test_one_session_too_many_ends_the_one_not_seen_for_longest",
    "data_exports_per_day": "services/auth/test_exports.py::test_one_export_at_a_time_and_some_a_day",
    "contacts": "services/user/test_profiles.py::test_limits_hold_however_many_calls_come_at_once",
    "blocks": "services/user/test_profiles.py::test_blocks_are_limited",
    "group_members": "services/messaging/test_rpcs.py::test_the_member_limit_holds_in_a_race",
    "public_room_members": f"{_RULES}::test_the_lower_limit_of_members_counts",
    "private_room_members": f"{_RULES}::test_the_lower_limit_of_members_counts",
    "premium_room_members": f"{_RULES}::test_the_lower_limit_of_members_counts",
    "user_rooms_per_hour": f"{_CHAT}::test_rates_are_limited",
    "user_reports_per_hour": f"{_CHAT}::test_rates_are_limited",
    "room_invitations": f"{_ROOMS}::test_invitations_are_bounded_and_taken_back",
    "flag_reports": f"{_RULES}::test_reports_have_thresholds",
    "hide_reports": f"{_RULES}::test_reports_have_thresholds",
    "room_event_queue": "services/chat/test_live.py::test_a_slow_reader_is_told_from_where_to_go_on",
    "user_subscriptions": "services/chat/test_live.py::test_streams_are_bounded_and_drained",
    "page_size": "conversations/test_domain.py::test_page_sizes_are_clamped",
    "page_size_max": "conversations/test_domain.py::test_page_sizes_are_clamped",
    "user_devices": "services/notification/test_devices.py::test_a_person_has_so_many_devices",
    "inbox_entries": "services/notification/test_messages.py::test_an_inbox_keeps_its_length",
    "inbox_days": "services/notification/test_inbox.py::test_old_entries_are_let_go",
    "push_host_requests": "services/notification/test_devices.py::test_a_slow_host_holds_up_its_own_pushes_only",
    "media_file_bytes": f"{_UPLOADS}::test_the_size_of_a_file_is_limited",
    "media_user_bytes": f"{_UPLOADS}::test_the_quota_holds_against_uploads_at_once",
    "media_pending_uploads": f"{_UPLOADS}::test_unfinished_uploads_and_their_rate_are_limited",
    "media_uploads_per_min": f"{_UPLOADS}::test_unfinished_uploads_and_their_rate_are_limited",
    "media_streams": f"{_UPLOADS}::test_requests_at_once_are_limited",
    "media_pixels": "services/media/test_examine.py::test_a_bomb_is_not_decoded",
    "typing_expires_s": "services/messaging/test_channels.py::test_typing_expires",
    "edit_window_s": f"{_MESSAGES}::test_who_edits_and_deletes_for_everyone",
    "erase_window_s": f"{_MESSAGES}::test_who_edits_and_deletes_for_everyone",
    "message_reactions": f"{_MESSAGES}::test_limits_of_reactions_and_pins_hold_when_everybody_tries_at_once",
    "conversation_pins": f"{_MESSAGES}::test_limits_of_reactions_and_pins_hold_when_everybody_tries_at_once",
    "user_scheduled": "services/messaging/test_own_state.py::test_scheduling_is_bounded_and_repeatable",
    "resume_len": "conversations/test_resume.py::test_what_does_not_fit_into_a_join_is_paged_by_its_cursor",
    "user_streams": f"{_STREAMS}::test_limits_of_streamers",
    "user_streams_per_hour": f"{_STREAMS}::test_limits_of_streamers",
    "node_streams": "services/stream/test_engine.py::test_a_node_takes_as_many_streams_as_it_is_set",
    "stream_listeners": f"{_STREAMS}::test_limits_of_listeners",
    "address_listeners": f"{_STREAMS}::test_limits_of_listeners",
    "user_listeners": f"{_STREAMS}::test_limits_of_listeners",
    "stream_invitations": f"{_STREAMS}::test_limits_of_streamers",
    "recording_days": f"{_STREAMS}::test_recordings_expire",
}
