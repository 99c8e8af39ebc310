-- The demo's tables, from files of npm's vega-datasets; run by scripts/demo.
SET TimeZone = 'UTC';

CREATE TABLE weather
(
	location text,
	date date,
	precipitation numeric(5, 1),
	temp_max float8,
	temp_min float8,
	wind float8,
	weather text
);
-- \copy knows no variables; a variable that is the whole command does.
\set copy '\\copy weather FROM ' :'weather' ' (FORMAT csv, HEADER)'
:copy

-- A JSON document is one value: no delimiter or quote that could occur in it.
CREATE TEMP TABLE document (line text);
\set copy '\\copy document FROM ' :'earthquakes' ' (FORMAT csv, DELIMITER E''\\x01'', QUOTE E''\\x02'')'
:copy

CREATE TABLE earthquakes AS
SELECT f ->> 'id' AS id,
	to_timestamp((f #>> '{properties,time}')::bigint / 1000.0) AS happened_at,
	(f #>> '{properties,mag}')::float8 AS magnitude,
	f #>> '{properties,place}' AS place,
	ARRAY[(f #>> '{geometry,coordinates,0}')::float8, (f #>> '{geometry,coordinates,1}')::float8] AS longitude_latitude,
	(f #>> '{geometry,coordinates,2}')::float8 AS depth_km,
	f -> 'properties' AS properties
FROM (SELECT string_agg(line, '')::jsonb FROM document) AS d(doc),
	jsonb_array_elements(doc -> 'features') AS f;

TRUNCATE document;
\set copy '\\copy document FROM ' :'flights' ' (FORMAT csv, DELIMITER E''\\x01'', QUOTE E''\\x02'')'
:copy

CREATE TABLE flights AS
SELECT row_number() OVER () AS id,
	to_timestamp(f ->> 'date', 'YYYY/MM/DD HH24:MI')::timestamp AS departure,
	f ->> 'origin' AS origin,
	f ->> 'destination' AS destination,
	(f ->> 'distance')::int AS distance,
	make_interval(mins => (f ->> 'delay')::int) AS delay
FROM (SELECT string_agg(line, '')::jsonb FROM document) AS d(doc),
	jsonb_array_elements(doc) AS f;

ANALYZE;
