PRAGMA user_version = 1;
CREATE TABLE chats (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    title TEXT NOT NULL,
    titled_by TEXT NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    settings TEXT NOT NULL,
    tip INTEGER,
    deleted REAL
);
CREATE INDEX chats_by_time ON chats (updated);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    parent INTEGER REFERENCES messages (id),
    role TEXT NOT NULL,
    name TEXT,
    content TEXT NOT NULL,
    reasoning TEXT,
    state TEXT NOT NULL,
    writer TEXT,
    created REAL NOT NULL,
    outcome TEXT NOT NULL,
    summary TEXT
);
CREATE INDEX messages_of_chat ON messages (chat);
CREATE INDEX messages_by_parent ON messages (parent);
CREATE INDEX messages_sent ON messages (created) WHERE role = 'user';
CREATE INDEX messages_being_written ON messages (writer) WHERE state = 'unfinished';
CREATE TABLE attachments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    message INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    content TEXT NOT NULL,
    tokens INTEGER
);
CREATE INDEX attachments_of_message ON attachments (message);
CREATE TABLE drafts (chat INTEGER PRIMARY KEY, draft TEXT NOT NULL);
CREATE VIRTUAL TABLE words USING fts5 (
    content, content = '', tokenize = 'unicode61 remove_diacritics 2', prefix = '1 2 3'
);
CREATE VIRTUAL TABLE titles USING fts5 (content, content = '', tokenize = 'unicode61 remove_diacritics 2');
CREATE TRIGGER message_added AFTER INSERT ON messages BEGIN INSERT INTO words (rowid, content) SELECT new.id, spaced(new.content) WHERE new.role IN ('user', 'assistant') AND new.state <> 'unfinished'; END;
CREATE TRIGGER message_changed AFTER UPDATE OF role, content, state ON messages BEGIN INSERT INTO words (words, rowid, content) SELECT 'delete', old.id, spaced(old.content) WHERE old.role IN ('user', 'assistant') AND old.state <> 'unfinished'; INSERT INTO words (rowid, content) SELECT new.id, spaced(new.content) WHERE new.role IN ('user', 'assistant') AND new.state <> 'unfinished'; END;
CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN INSERT INTO words (words, rowid, content) SELECT 'delete', old.id, spaced(old.content) WHERE old.role IN ('user', 'assistant') AND old.state <> 'unfinished'; END;
CREATE TRIGGER chat_added AFTER INSERT ON chats BEGIN
    INSERT INTO titles (rowid, content) VALUES (new.id, spaced(new.title));
END;
CREATE TRIGGER chat_renamed AFTER UPDATE OF title ON chats BEGIN
    INSERT INTO titles (titles, rowid, content) VALUES ('delete', old.id, spaced(old.title));
    INSERT INTO titles (rowid, content) VALUES (new.id, spaced(new.title));
END;
CREATE TRIGGER chat_removed AFTER DELETE ON chats BEGIN
    INSERT INTO titles (titles, rowid, content) VALUES ('delete', old.id, spaced(old.title));
    DELETE FROM drafts WHERE chat = old.id;
END;
INSERT INTO chats (id, kind, title, titled_by, pinned, created, updated, settings, tip, deleted) VALUES (1, 'chat', 'Bread', 'person', 1, 1.79531775382356691356e+09, 1.79531775389868474002e+09, '{"model":"m","system":"Be brief.","sampling":{"temperature":0.5}}', 2, NULL);
INSERT INTO chats (id, kind, title, titled_by, pinned, created, updated, settings, tip, deleted) VALUES (2, 'ask', 'quick?', 'words', 0, 1.7953177540045118332e+09, 1.7953177540467460155e+09, '{}', 5, NULL);
INSERT INTO messages (id, chat, parent, role, name, content, reasoning, state, writer, created, outcome, summary) VALUES (1, 1, NULL, 'user', NULL, 'How long in the oven? 日本', NULL, 'done', NULL, 1.7953177538426704407e+09, '{}', NULL);
INSERT INTO messages (id, chat, parent, role, name, content, reasoning, state, writer, created, outcome, summary) VALUES (2, 1, 1, 'assistant', NULL, 'An hour.', 'hm', 'stopped', NULL, 1.79531775384307813641e+09, '{"model":"m","finish_reason":"stop","cached_tokens":7}', 'All of it');
INSERT INTO messages (id, chat, parent, role, name, content, reasoning, state, writer, created, outcome, summary) VALUES (3, 1, 1, 'assistant', NULL, 'Two hours.', NULL, 'done', NULL, 1.79531775387797093391e+09, '{}', NULL);
INSERT INTO messages (id, chat, parent, role, name, content, reasoning, state, writer, created, outcome, summary) VALUES (4, 2, NULL, 'user', NULL, 'quick?', NULL, 'done', NULL, 1.79531775402761149405e+09, '{}', NULL);
INSERT INTO messages (id, chat, parent, role, name, content, reasoning, state, writer, created, outcome, summary) VALUES (5, 2, 4, 'assistant', NULL, 'Yes.', NULL, 'done', NULL, 1.79531775402785634997e+09, '{}', NULL);
INSERT INTO attachments (id, message, name, content, tokens) VALUES (1, 1, 'recipe.txt', 'flour', 3);
INSERT INTO drafts (chat, draft) VALUES (0, '{"text":"new"}');
INSERT INTO drafts (chat, draft) VALUES (1, '{"text":"more"}');
