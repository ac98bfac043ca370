-- What the jobs say.

-- A text as a part of a line: a name in it, such as that of a website, could begin another line, and say what it wants.
CREATE OR REPLACE FUNCTION analytics_one_line(several text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT replace(several, E'\n', '\n')
$$;
