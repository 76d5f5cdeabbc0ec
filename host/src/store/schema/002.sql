-- What a job asks of the queue beside its slots, as the queue needs it at a start (`Terms`); NULL for nothing.
ALTER TABLE jobs ADD COLUMN terms TEXT;
